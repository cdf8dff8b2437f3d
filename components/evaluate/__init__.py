"""Compare the challenger with the champion offline."""
