"""The byte format and the rules of event streams: no I/O, no clock."""
