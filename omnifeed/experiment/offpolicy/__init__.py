"""What a policy would have earned, from the log of another: a filter before any traffic, never a promotion."""
