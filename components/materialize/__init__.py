"""Compute features as of their time, fill Feast, and join the training rows."""
