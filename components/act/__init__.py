"""Act on the verdict."""
