"""Train the one model."""
