"""Where events are kept for readers who come back."""
