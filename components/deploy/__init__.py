"""Put the challenger in front of a slice of the users."""
