"""Bring what was served into the lake."""
