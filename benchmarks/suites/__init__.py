"""The suites. Each measures one property of all contestants."""
