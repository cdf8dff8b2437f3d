"""Name the release that a challenger must beat."""
