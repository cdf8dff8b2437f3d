"""Omnifeed: one model for every surface, promoted only on evidence.

Importing this package costs nothing beyond the standard library, so that Triton's Python (numpy 1.26) and the
command line's `--help` can both afford it.
"""

__version__ = "0.1.0"
