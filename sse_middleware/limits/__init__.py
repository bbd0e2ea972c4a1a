"""Admission: how many streams may be open."""
