"""Bring a source's logs, catalogue and users into the canonical tables."""
