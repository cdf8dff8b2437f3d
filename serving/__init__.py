"""Serving: the Triton model repository's own models, the local server, the client."""
