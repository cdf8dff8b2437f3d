"""Feast definitions generated from the feature specification; one feature_store.yaml an environment."""
