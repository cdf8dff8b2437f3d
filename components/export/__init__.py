"""Write the immutable release bundle."""
