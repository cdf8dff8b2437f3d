"""Record how a pipeline ended."""
