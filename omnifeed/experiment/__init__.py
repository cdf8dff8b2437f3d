"""Experiments: assignment, metrics, verdict, ledger."""
