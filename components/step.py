"""The decorator of every step. It stands apart because a running step imports this package without `dsl.component`."""

import functools
import os

from kfp import dsl

#: The image of every step; `python` in its name keeps Kubeflow's local runner from warning.
IMAGE = os.environ.get("OMNIFEED_IMAGE", "omnifeed/step-python:0.1.0")

step = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
