"""Hold the tables against the data contract."""
