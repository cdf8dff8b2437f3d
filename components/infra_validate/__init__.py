"""Load the release in a real Triton and ask it."""
