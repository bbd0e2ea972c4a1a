"""The suites: each measures one thing of all contestants."""
