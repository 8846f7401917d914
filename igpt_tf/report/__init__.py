"""A run's folder as one HTML page that opens without a network."""
