"""What a stream costs with us, without us and by others: `python -m benchmarks`."""
