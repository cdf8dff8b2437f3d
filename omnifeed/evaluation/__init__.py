"""Retrieval and ranking metrics, per scenario, with intervals, and the comparison that blesses a challenger."""
