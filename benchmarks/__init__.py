"""The costs of an event stream with and without the middleware: `python -m benchmarks`."""
