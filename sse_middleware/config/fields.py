"""What a setting is: how its variable is read, what is allowed, and what it means.

Most functions here make a field of `Options` that carries its `Setting`; `from_variables` reads it.
"""

import ipaddress
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sse_middleware.errors import ConfigurationError

logger = logging.getLogger("sse_middleware")

OFF = "off"
UNIX = "unix"
"""Stands for whoever connects by a unix socket, and so has no address."""

_YEAR = 31_536_000.0  # the longest time: far past any stream, near enough to calculate with
_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False}


def _as_it_is(value: object) -> object:
    return value


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How one field of `Options` is read and checked.

    Attributes:
        env: the variable that sets it.
        bare: the older variable without the prefix, which works too.
        parse: reads the variable's text; raises `ValueError` where it is none of its values.
        check: tells whether a value of any type is allowed.
        allowed: what is, in words.
        meaning: what it does, and why the default is what it is.
        may_be_empty: whether an empty variable is a value, and not as good as unset.
        masked: returns a value as it may be shown; some hold a password.
    """

    env: str
    bare: str = ""
    parse: Callable[[str], object]
    check: Callable[[object], bool]
    allowed: str
    meaning: str
    may_be_empty: bool = False
    masked: Callable[[object], object] = _as_it_is


def _is_number(value: object, lowest: float, highest: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return lowest <= value <= highest


def _setting(default: object, setting: Setting) -> Any:
    return field(default=default, metadata={"setting": setting})


def seconds(
    env: str,
    default: float,
    meaning: str,
    *,
    lowest: float,
    bare: str = "",
    may_be_off: bool = True,
) -> Any:
    """Make a field of seconds, `None` for off where it may be."""

    def parse(text: str) -> float | None:
        return None if may_be_off and text.lower() == OFF else float(text)

    def check(value: object) -> bool:
        return (may_be_off and value is None) or _is_number(value, lowest, _YEAR)

    return _setting(
        default,
        Setting(
            env=env,
            bare=bare,
            parse=parse,
            check=check,
            allowed=f"seconds from {lowest:g} to {_YEAR:.0f}" + ", or off (None)" * may_be_off,
            meaning=meaning,
        ),
    )


def whole(
    env: str,
    default: int | None,
    meaning: str,
    *,
    lowest: int,
    highest: int,
    unit: str,
    bare: str = "",
) -> Any:
    """Make a field of a whole number, `None` for off where that is the default."""
    may_be_off = default is None

    def parse(text: str) -> int | None:
        return None if may_be_off and text.lower() == OFF else int(text)

    def check(value: object) -> bool:
        if value is None:
            return may_be_off
        return isinstance(value, int) and _is_number(value, lowest, highest)

    return _setting(
        default,
        Setting(
            env=env,
            bare=bare,
            parse=parse,
            check=check,
            allowed=f"whole {unit} from {lowest} to {highest}" + ", or off (None)" * may_be_off,
            meaning=meaning,
        ),
    )


def flag(env: str, meaning: str, *, default: bool) -> Any:
    """Make a field of yes or no."""

    def parse(text: str) -> bool:
        if text.lower() not in _WORDS:
            raise ValueError(text)
        return _WORDS[text.lower()]

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
            check=lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None,
            allowed=allowed,
            meaning=meaning,
            may_be_empty=re.fullmatch(pattern, "") is not None,
        ),
    )


def several(env: str, meaning: str, *, is_one: Callable[[str], object], allowed: str) -> Any:
    """Make a field of several texts for each of which `is_one` is true."""

    def check(value: object) -> bool:
        return isinstance(value, tuple) and all(
            isinstance(item, str) and is_one(item) for item in value
        )

    return _setting(
        (),
        Setting(
            env=env,
            parse=lambda text: tuple(item.strip() for item in text.split(",") if item.strip()),
            check=check,
            allowed=f"{allowed}, separated by commas (a tuple)",
            meaning=meaning,
        ),
    )


def globs(env: str, meaning: str) -> Any:
    """Make a field of path globs."""
    return several(
        env,
        meaning,
        is_one=lambda text: text.startswith(("/", "*")),
        allowed="path globs, each with a / or * first",
    )


def names(env: str, meaning: str) -> Any:
    """Make a field of names of cookies."""
    # RFC 6265 4.1.1: a cookie's name is a token of RFC 9110 5.6.2.
    token = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
    return several(env, meaning, is_one=token.fullmatch, allowed="names of cookies")


def networks(env: str, meaning: str) -> Any:
    """Make a field of addresses and networks."""

    def is_one(text: str) -> bool:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            return text == UNIX
        return True

    allowed = f"addresses, networks such as 10.0.0.0/8, or {UNIX}"
    return several(env, meaning, is_one=is_one, allowed=allowed)


def url(env: str, meaning: str, *, schemes: tuple[str, ...]) -> Any:
    """Make a field of a URL of one of `schemes`, or of nothing."""
    pattern = rf"((?:{'|'.join(map(re.escape, schemes))})://\S+)?"
    return _setting(
        "",
        Setting(
            env=env,
            parse=str,
            check=lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None,
            allowed=f"a URL of {', '.join(schemes)}, or nothing",
            meaning=meaning,
            may_be_empty=True,
            masked=lambda value: re.sub(r"^(.*?://)?.*@", r"\1***@", str(value)),
        ),
    )


def from_variables(setting: Setting, environ: Mapping[str, str]) -> tuple[object, ...]:
    """Return the one value that a variable sets, or nothing."""
    told = environ.get(setting.env)
    if told is not None and (told.strip() or setting.may_be_empty):
        return (_parsed(setting.env, told.strip(), setting),)
    told = environ.get(setting.bare, "").strip() if setting.bare else ""
    if told:
        try:
            return (_parsed(setting.bare, told, setting),)
        except ConfigurationError as exc:
            logger.warning("%s; passed over, set %s instead", exc, setting.env)
    return ()


def _parsed(variable: str, told: str, setting: Setting) -> object:
    try:
        value = setting.parse(told)
    except ValueError as exc:
        raise ConfigurationError(variable, setting.masked(told), setting.allowed) from exc
    if not setting.check(value):
        raise ConfigurationError(variable, setting.masked(told), setting.allowed)
    return value
