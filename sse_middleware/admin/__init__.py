"""The live page for operators: the streams of a process as they are now."""
