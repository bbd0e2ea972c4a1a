"""Mistakes in variables: each message has the variable, its value, and what is allowed."""

import re

import pytest

from sse_middleware.config.options import Options
from sse_middleware.errors import ConfigurationError

WORDS = "1, true, yes, on, 0, false, no or off"
SECONDS = "seconds from 0.05 to 31536000, or off (None)"
ITEMS = "separated by commas (or a list)"
URL = (
    "a URL such as redis://localhost:6379/0, or with rediss, unix, redis+cluster, "
    "rediss+cluster, redis+sentinel, rediss+sentinel, or nothing"
)

MISTAKES = {
    "a unit": ("SSE_HEARTBEAT_INTERVAL", "5s", SECONDS),
    "minutes": ("SSE_LINGER_SECONDS", "1m", "seconds from 0 to 31536000"),
    "a negative time": ("SSE_STREAM_MAX_SECONDS", "-1", SECONDS),
    "a word that is no switch": ("SSE_ENABLED", "maybe", WORDS),
    "half a stream": ("SSE_MAX_STREAMS", "1.5", "whole streams from 1 to 1000000, or off (None)"),
    "a percent sign": ("SSE_ROLLOUT_PERCENT", "150%", "whole percent from 0 to 100"),
    "a URL without a scheme": ("SSE_REDIS_URL", "localhost:6379", URL),
    "a URL of another service": ("SSE_REDIS_URL", "http://localhost:6379", URL),
    "a path without a slash": (
        "SSE_MARK",
        "chat",
        f"path globs below the root_path, each with a / or * first, {ITEMS}",
    ),
    "a word with a wrong ending": ("SSE_CAP_ACTION", "rotated", "complete or rotate"),
    "an upper case letter": ("SSE_CAP_ACTION", "Rotate", "complete or rotate"),
    "an unknown style": ("SSE_COMMENT_STYLE", "none", "auto, line, block or off"),
    "an unknown period": (
        "SSE_OPEN_RATE",
        "30/fortnight",
        "a number per second, minute, hour or day, such as 30/minute, or nothing",
    ),
    "a network that is too long": (
        "SSE_TRUSTED_PROXIES",
        "10.0.0.0/33",
        f"addresses, networks such as 10.0.0.0/8, or unix, {ITEMS}",
    ),
    "a coding that is not offered": (
        "SSE_COMPRESSION",
        "deflate",
        f"zstd, br or gzip; zstd and br need sse-middleware[compression], {ITEMS}",
    ),
    "a path of the client without a slash": (
        "SSE_CLIENT_PATH",
        "sse-client.js",
        "a path with a / first and of A-Z, a-z, 0-9 and . _ ~ / -, or nothing",
    ),
    "a cookie with a space": ("SSE_IDENTITY_COOKIES", "my session", f"names of cookies, {ITEMS}"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_variable_is_explained(mistake: str) -> None:
    name, value, allowed = MISTAKES[mistake]
    with pytest.raises(ConfigurationError, match=f"^{name} is '{re.escape(value)}', allowed is "):
        Options.from_environ({name: value})
    with pytest.raises(ConfigurationError, match=f"allowed is {re.escape(allowed)}$"):
        Options.from_environ({name: value})


def test_a_short_secret_is_explained_without_it() -> None:
    message = r"^SSE_SECRET is '\*\*\*', allowed is 16 to 1024 characters in one line, or nothing$"
    with pytest.raises(ConfigurationError, match=message):
        Options.from_environ({"SSE_SECRET": "geheim"})
