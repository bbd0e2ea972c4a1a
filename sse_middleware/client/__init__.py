"""The browser client, and the code that serves it."""
