"""The image of the dashboard in docs/metrics.md: `python -m benchmarks.dashboard`."""
