"""The example application of `sse_middleware`: questions to the Python documentation, streamed."""
