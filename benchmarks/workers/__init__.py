"""The measured processes."""
