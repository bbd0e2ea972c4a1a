"""Kinds of settings: how a variable is parsed, which values are allowed, what a setting means.

Each function makes a field of `Options` that carries a `Setting`; `read_variable` uses it.
"""

import ipaddress
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sse_middleware.config.coding_modules import coding_module
from sse_middleware.errors import ConfigurationError, redact_url

logger = logging.getLogger("sse_middleware")

OFF = "off"
UNIX = "unix"
"""Stands for all clients that connect by a unix socket and therefore have no address."""

_YEAR = 31_536_000.0  # the longest time: far longer than any stream, and still exact as a float
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True}
_BOOLEANS |= {"0": False, "false": False, "no": False, "off": False}


def _unchanged(value: object) -> object:
    return value


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How one field of `Options` is parsed and validated.

    Attributes:
        env: the variable that sets it.
        legacy_env: the older variable without the prefix, which is read if `env` is not set.
        parse: converts the text of the variable; raises `ValueError` if it cannot.
        check: returns whether a value of any type is allowed.
        allowed: the allowed values, for error messages and the docs.
        meaning: the effect of the setting, and the reason for its default.
        may_be_empty: whether an empty variable is a value; if not, it counts as unset.
        convert: returns the value of an argument in the form in which it is stored.
        redact: returns a value without its passwords, to be displayed.
    """

    env: str
    legacy_env: str = ""
    parse: Callable[[str], object]
    check: Callable[[object], bool]
    allowed: str
    meaning: str
    may_be_empty: bool = False
    convert: Callable[[object], object] = _unchanged
    redact: Callable[[object], object] = _unchanged


def seconds(
    env: str,
    default: float,
    meaning: str,
    *,
    lowest: float,
    legacy_env: str = "",
    may_be_off: bool = True,
) -> Any:
    """Make a field of seconds; `None` means off, if `may_be_off`."""

    def parse(text: str) -> float | None:
        return None if may_be_off and text.lower() == OFF else float(text)

    def check(value: object) -> bool:
        return (may_be_off and value is None) or is_number(value, lowest, _YEAR)

    return _setting(
        default,
        Setting(
            env=env,
            legacy_env=legacy_env,
            parse=parse,
            check=check,
            allowed=f"seconds from {lowest:g} to {_YEAR:.0f}" + ", or off (None)" * may_be_off,
            meaning=meaning,
        ),
    )


def integer(
    env: str,
    default: int | None,
    meaning: str,
    *,
    lowest: int,
    highest: int,
    unit: str,
    legacy_env: str = "",
) -> Any:
    """Make a field of an integer; `None` means off, if it is the default."""
    may_be_off = default is None

    def parse(text: str) -> int | None:
        return None if may_be_off and text.lower() == OFF else int(text)

    def check(value: object) -> bool:
        if value is None:
            return may_be_off
        return isinstance(value, int) and is_number(value, lowest, highest)

    return _setting(
        default,
        Setting(
            env=env,
            legacy_env=legacy_env,
            parse=parse,
            check=check,
            allowed=f"whole {unit} from {lowest} to {highest}" + ", or off (None)" * may_be_off,
            meaning=meaning,
        ),
    )


def boolean(env: str, meaning: str, *, default: bool) -> Any:
    """Make a field of a boolean."""

    def parse(text: str) -> bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]

    return _setting(
        default,
        Setting(
            env=env,
            parse=parse,
            check=lambda value: isinstance(value, bool),
            allowed="1, true, yes, on, 0, false, no or off",
            meaning=meaning,
        ),
    )


def text(env: str, default: str, meaning: str, *, pattern: str, allowed: str) -> Any:
    """Make a field of text that `pattern` matches."""
    return _setting(
        default,
        Setting(
            env=env,
            parse=str,
            check=_matches(pattern),
            allowed=allowed,
            meaning=meaning,
            may_be_empty=re.fullmatch(pattern, "") is not None,
        ),
    )


def choice(env: str, default: str, meaning: str, *, values: tuple[str, ...]) -> Any:
    """Make a field of one of some words."""
    *others, last = values
    return text(
        env,
        default,
        meaning,
        pattern="|".join(map(re.escape, values)),
        allowed=f"{', '.join(others)} or {last}",
    )


def string_list(env: str, meaning: str, *, is_item: Callable[[str], object], allowed: str) -> Any:
    """Make a field of a tuple of strings; `is_item` is true for each.

    An argument may also be a list, or one string as in the variable.
    """

    def parse(text: str) -> tuple[str, ...]:
        return tuple(item.strip() for item in text.split(",") if item.strip())

    def convert(value: object) -> object:
        if isinstance(value, str):
            return parse(value)
        return tuple(value) if isinstance(value, list) else value

    def check(value: object) -> bool:
        return isinstance(value, tuple) and all(
            isinstance(item, str) and is_item(item) for item in value
        )

    return _setting(
        (),
        Setting(
            env=env,
            parse=parse,
            check=check,
            allowed=f"{allowed}, separated by commas (or a list)",
            meaning=meaning,
            convert=convert,
        ),
    )


GLOBS_ALLOWED = "path globs below the root_path, each with a / or * first"


def is_glob(text: str) -> bool:
    """Return whether `text` is a path glob that can match: it begins with `/` or `*`."""
    return text.startswith(("/", "*"))


def globs(env: str, meaning: str) -> Any:
    """Make a field of path globs."""
    return string_list(env, meaning, is_item=is_glob, allowed=GLOBS_ALLOWED)


def cookie_names(env: str, meaning: str) -> Any:
    """Make a field of cookie names."""
    # RFC 6265 4.1.1: the name of a cookie is a token of RFC 9110 5.6.2.
    token = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
    return string_list(env, meaning, is_item=token.fullmatch, allowed="names of cookies")


def networks(env: str, meaning: str) -> Any:
    """Make a field of addresses and networks."""

    def is_network(text: str) -> bool:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            return text == UNIX
        return True

    allowed = f"addresses, networks such as 10.0.0.0/8, or {UNIX}"
    return string_list(env, meaning, is_item=is_network, allowed=allowed)


def codings(env: str, meaning: str) -> Any:
    """Make a field of content codings whose packages are installed."""
    allowed = "zstd, br or gzip; zstd and br need sse-middleware[compression]"
    return string_list(env, meaning, is_item=coding_module, allowed=allowed)


def url(env: str, meaning: str, *, schemes: tuple[str, ...]) -> Any:
    """Make a field of a URL with one of `schemes`, or of an empty string."""
    return _setting(
        "",
        Setting(
            env=env,
            parse=str,
            check=_matches(rf"((?:{'|'.join(map(re.escape, schemes))})://\S+)?"),
            allowed=f"a URL such as {schemes[0]}://localhost:6379/0, or with "
            f"{', '.join(schemes[1:])}, or nothing",
            meaning=meaning,
            may_be_empty=True,
            redact=redact_url,
        ),
    )


def secret(env: str, meaning: str) -> Any:
    """Make a field of a secret, or of an empty string; it is never displayed."""
    return _setting(
        "",
        Setting(
            env=env,
            parse=str,
            check=_matches(r"(.{16,1024})?"),
            allowed="16 to 1024 characters in one line, or nothing",
            meaning=meaning,
            may_be_empty=True,
            redact=lambda value: "***" if value else "",
        ),
    )


def read_variable(setting: Setting, environ: Mapping[str, str]) -> tuple[object, ...]:
    """Return a tuple of the value that a variable sets, or an empty one."""
    value = environ.get(setting.env)
    if value is not None and (value.strip() or setting.may_be_empty):
        return (_parsed(setting.env, value.strip(), setting),)
    value = environ.get(setting.legacy_env, "").strip() if setting.legacy_env else ""
    if value:
        try:
            return (_parsed(setting.legacy_env, value, setting),)
        except ConfigurationError as exc:
            logger.warning("%s; the variable is ignored, set %s instead", exc, setting.env)
    return ()


def _parsed(variable: str, text: str, setting: Setting) -> object:
    try:
        value = setting.parse(text)
    except ValueError as exc:
        raise ConfigurationError(variable, setting.redact(text), setting.allowed) from exc
    if not setting.check(value):
        raise ConfigurationError(variable, setting.redact(text), setting.allowed)
    return value


def _setting(default: object, setting: Setting) -> Any:
    is_public = setting.redact is _unchanged
    return field(default=default, repr=is_public, metadata={"setting": setting})


def is_number(value: object, lowest: float, highest: float) -> bool:
    """Return whether a value is a number from `lowest` to `highest`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return lowest <= value <= highest


def _matches(pattern: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None
