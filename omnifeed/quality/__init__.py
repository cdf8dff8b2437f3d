"""The data contract: what a table set must satisfy before anything learns from it."""
