"""Who makes a request: the example has no login, so the key that a client sends counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.datastructures import Headers

if TYPE_CHECKING:
    from collections.abc import Mapping

_PUBLIC: Final = ("/threads/", "/v1/responses")
"""Paths of which a request without a key has an identity too, which all of these share."""


def identity_of(scope: Mapping[str, Any]) -> str | None:
    """Return the identity of a request: its `Authorization`, or `"public"` at some paths."""
    authorization = Headers(raw=scope["headers"]).get("authorization")
    return authorization or ("public" if scope["path"].startswith(_PUBLIC) else None)
