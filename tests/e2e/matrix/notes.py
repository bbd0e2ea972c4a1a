"""The steps that apps note, in files, which the processes of a server and its client share."""

from pathlib import Path


def add(notes: Path, key: str, step: str) -> None:
    """Add a step of the request with this `key`."""
    with (notes / key).open("a") as file:
        file.write(f"{step}\n")


def read(notes: Path, key: str) -> list[str]:
    """Return the steps in their order."""
    path = notes / key
    return path.read_text().splitlines() if path.exists() else []
