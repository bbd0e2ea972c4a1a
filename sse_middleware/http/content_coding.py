"""Content codings of an event stream: the choice for a client, and its encoder (RFC 9110 8.4).

Each connection has an encoder of its own, whose window lasts as long as the connection: the names
and fields that events have in common are what makes them small. After each message all bytes are
flushed, so that the client receives whole events. The parameters keep the memory of an encoder
small, since a worker has one for each of its streams.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from sse_middleware.config.coding_modules import coding_module

_GZIP_WINDOW: Final = 16 + 12  # the format of gzip, and 4 KiB
_GZIP_MEMORY: Final = 5  # of 9; 16 KiB
_BROTLI: Final = {"quality": 5, "lgwin": 16}
_ZSTD_LEVEL: Final = 1
_ZSTD_WINDOW: Final = 15
_DEFAULT_QUALITY: Final = 1.0


class Encoder(NamedTuple):
    """The state of one coded body.

    Attributes:
        flush: returns the coded form of some bytes, and of all before them.
        finish: returns the end of the body.
    """

    flush: Callable[[bytes], bytes]
    finish: Callable[[], bytes]


def _gzip() -> Encoder:
    coder = zlib.compressobj(wbits=_GZIP_WINDOW, memLevel=_GZIP_MEMORY)
    return Encoder(lambda data: coder.compress(data) + coder.flush(zlib.Z_SYNC_FLUSH), coder.flush)


def _brotli() -> Encoder:
    module = coding_module("br")
    coder = module.Compressor(mode=module.MODE_TEXT, **_BROTLI)
    return Encoder(lambda data: coder.process(data) + coder.flush(), coder.finish)


def _zstd() -> Encoder:
    module = coding_module("zstd")
    parameter = module.CompressionParameter
    coder = module.ZstdCompressor(
        options={parameter.compression_level: _ZSTD_LEVEL, parameter.window_log: _ZSTD_WINDOW}
    )
    return Encoder(lambda data: coder.compress(data, coder.FLUSH_BLOCK), coder.flush)


ENCODERS: Final[dict[str, Callable[[], Encoder]]] = {"gzip": _gzip, "br": _brotli, "zstd": _zstd}
"""Functions that create an encoder, by the name of the coding."""


def choose_coding(header: bytes, offered: Sequence[str]) -> str:
    """Return the first of the codings offered that a client accepts, `""` if it accepts none.

    Args:
        header: its `Accept-Encoding` (RFC 9110 12.5.3), `b""` without one.
        offered: names of codings, the best one first.
    """
    accepted: dict[str, bool] = {}
    for part in header.decode("latin-1").lower().split(","):
        name, _, parameter = part.partition(";")
        accepted[name.strip()] = _quality(parameter) > 0
    others = accepted.get("*", False)
    return next((name for name in offered if accepted.get(name, others)), "")


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return _DEFAULT_QUALITY
    try:
        return float(value)
    except ValueError:
        return 0.0
