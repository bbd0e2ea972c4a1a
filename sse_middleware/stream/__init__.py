"""One streaming response: its producer, its connections, its end."""
