"""What `recommend` does between a request and its answer: numpy, the standard library, and no server."""
