"""Official implementations of compression, each run by another Python."""
