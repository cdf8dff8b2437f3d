"""A simulated market that yields logs and answers recommendations, so that a better model really earns more."""
