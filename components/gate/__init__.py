"""Read the experiment's logs and decide."""
