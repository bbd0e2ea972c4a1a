"""Content codings: what they are called, which the doctor can undo, and how.

gzip and deflate need nothing. Brotli needs the package `brotli`; Zstandard is part of Python 3.14,
and `backports.zstd` has the same module for older ones. The doctor asks only for codings that it
can undo, as a browser does.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sse_middleware.config.coding_modules import coding_module

_GZIP: Final = 47  # detects both formats
_ZLIB: Final = 15
_RAW_DEFLATE: Final = -15
"""Window bits of zlib. RFC 9110 8.4.1.2: some servers send deflate without its zlib wrapper."""

Decode = Callable[[bytes, int], bytes]
"""Decodes the next bytes of a body into at most a number of bytes; more are lost."""


@dataclass(frozen=True, kw_only=True)
class Coding:
    """A content coding.

    Attributes:
        name: its name in `Content-Encoding`.
        title: its usual name.
        package: the package that undoes it, `""` for none.
        create: returns a decoder, `None` if the package is missing.
    """

    name: str
    title: str
    package: str = ""
    create: Callable[[], Decode | None]


class DecodeError(ValueError):
    """A body cannot be decoded; the text is for the report."""


def codings_of(header: str) -> list[str]:
    """Return the codings of a `Content-Encoding`, in the order in which they were applied.

    `identity` and `none`, which some servers send, change nothing.
    """
    names = (name.strip().lower() for name in header.split(","))
    return [name for name in names if name not in ("", "identity", "none")]


def describe(header: str) -> str:
    """Return the value of a `Content-Encoding` with the usual names of its codings."""
    known = [CODINGS[name] for name in codings_of(header) if name in CODINGS]
    titles = [one.title for one in known if one.title.lower() != one.name]
    return f"{header} ({', '.join(titles)})" if titles else header


def accepted() -> str:
    """Return the value of `Accept-Encoding`: the codings of a browser that can be undone here."""
    return ", ".join(
        name for name in ("gzip", "deflate", "br", "zstd") if CODINGS[name].create() is not None
    )


def decoder_of(header: str) -> Decode:
    """Return a decoder for the body of a response with this `Content-Encoding`.

    Raises:
        DecodeError: a coding is not known, or its package is missing.
    """
    stages = [_stage(name) for name in reversed(codings_of(header))]

    def decode(data: bytes, limit: int) -> bytes:
        for stage in stages:
            try:
                data = stage(data, limit)
            except DecodeError:
                raise
            except Exception as exc:  # each package has an exception of its own
                raise DecodeError(f"The data is not valid: {exc}.") from exc
        return data

    return decode


def _stage(name: str) -> Decode:
    coding = CODINGS.get(name)
    if coding is None:
        raise DecodeError("The coding is not known.")
    decode = coding.create()
    if decode is None and coding.package:
        raise DecodeError(
            f"To have the doctor decode {coding.title}, install {coding.package} beside it."
        )
    if decode is None:
        raise DecodeError(f"The doctor cannot decode {coding.title}.")
    return decode


def _zlib(window_bits: int) -> Decode:
    return zlib.decompressobj(window_bits).decompress


def _deflate() -> Decode:
    chosen: Decode | None = None

    def decode(data: bytes, limit: int) -> bytes:
        nonlocal chosen
        if chosen is not None:
            return chosen(data, limit)
        chosen = _zlib(_ZLIB)
        try:
            return chosen(data, limit)
        except zlib.error:
            chosen = _zlib(_RAW_DEFLATE)
            return chosen(data, limit)

    return decode


def _brotli() -> Decode | None:
    module = coding_module("br")
    if module is None:
        return None
    decompressor = module.Decompressor()
    try:
        decompressor.process(b"", output_buffer_limit=1)
    except TypeError:  # older than 1.2: a small body could fill the memory
        return None

    def decode(data: bytes, limit: int) -> bytes:
        decoded = decompressor.process(data, output_buffer_limit=limit)
        while len(decoded) < limit and not decompressor.can_accept_more_data():
            decoded += decompressor.process(b"", output_buffer_limit=limit - len(decoded))
        return bytes(decoded[:limit])  # the limit of this package is a rough one

    return decode


def _zstd() -> Decode | None:
    module = coding_module("zstd")
    if module is None:
        return None
    decompressor = module.ZstdDecompressor()

    def decode(data: bytes, limit: int) -> bytes:
        nonlocal decompressor
        decoded = b""
        while data and len(decoded) < limit:  # a body may have several frames (RFC 8878 3.1)
            if decompressor.eof:
                decompressor = module.ZstdDecompressor()
            decoded += decompressor.decompress(data, max_length=limit - len(decoded))
            data = decompressor.unused_data
        return decoded

    return decode


CODINGS: Final = {
    coding.name: coding
    for coding in (
        Coding(name="gzip", title="gzip", create=lambda: _zlib(_GZIP)),
        Coding(name="x-gzip", title="gzip", create=lambda: _zlib(_GZIP)),
        Coding(name="deflate", title="deflate", create=_deflate),
        Coding(name="br", title="Brotli", package="brotli 1.2 or later", create=_brotli),
        Coding(
            name="zstd",
            title="Zstandard",
            package="backports.zstd, or Python 3.14 or later,",
            create=_zstd,
        ),
        Coding(name="compress", title="LZW", create=lambda: None),
        Coding(name="dcb", title="Brotli with a dictionary", create=lambda: None),
        Coding(name="dcz", title="Zstandard with a dictionary", create=lambda: None),
    )
}
"""The codings that servers and CDNs send: IANA's registry of HTTP content codings."""
