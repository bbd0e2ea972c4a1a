"""The modules of the content codings: which of them is installed on this Python."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, Final

_MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "gzip": ("zlib",),
    "br": ("brotli",),
    "zstd": ("compression.zstd", "backports.zstd"),  # from Python 3.14 on; a package with the same
}
"""The modules that can encode and decode each coding, the first choice first."""


@cache
def coding_module(coding: str) -> Any:
    """Return the module of a content coding, `None` if none is installed or the name is unknown.

    Args:
        coding: its name in `Content-Encoding` (RFC 9110 8.4.1), in lower case.
    """
    for name in _MODULES.get(coding, ()):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None
