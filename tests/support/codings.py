"""Decoders of the content codings in which streams are sent."""

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final

import pytest

GZIP_FORMAT: Final = 31  # https://www.zlib.net/manual.html: 16 + the largest window


def _brotli() -> Any:
    return importlib.import_module("brotli").Decompressor().process


def _zstd() -> Any:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return importlib.import_module(name).ZstdDecompressor().decompress


DECODERS: Final[dict[str, Callable[[], Callable[[bytes], bytes]]]] = {
    "gzip": lambda: zlib.decompressobj(GZIP_FORMAT).decompress,
    "br": _brotli,
    "zstd": _zstd,
}
"""Functions that create a decoder, by the name of the coding."""

_HAS_BROTLI: Final = importlib.util.find_spec("brotli") is not None
_HAS_ZSTD: Final = sys.version_info >= (3, 14) or importlib.util.find_spec("backports") is not None

CODINGS: Final = [
    "gzip",
    pytest.param(
        "br", marks=pytest.mark.skipif(not _HAS_BROTLI, reason="brotli is not installed here")
    ),
    pytest.param(
        "zstd",
        marks=pytest.mark.skipif(not _HAS_ZSTD, reason="backports.zstd is not installed here"),
    ),
]
"""The parameters of tests that run with each coding."""


def decoded(coding: str, *parts: bytes) -> list[bytes]:
    """Return what a client has after each part of a body."""
    decode = DECODERS[coding]()
    return [decode(part) for part in parts if part]
