"""Requests as parsed, and the response heads and responses that the middleware writes."""
