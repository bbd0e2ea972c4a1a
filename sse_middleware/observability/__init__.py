"""The numbers of a stream, and the places that they are reported to."""
