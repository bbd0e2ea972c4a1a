"""Clients that reconnect."""
