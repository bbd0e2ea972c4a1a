"""Answers of the admission check, and an app without an end."""

from tests.support.resuming import Counting

FULL = (503, "server_full")
MANY = (429, "too_many_streams")
LET_IN = (200, "")


def endless() -> Counting:
    return Counting(1000)
