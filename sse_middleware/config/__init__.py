"""Settings: each is defined once, in one table."""
