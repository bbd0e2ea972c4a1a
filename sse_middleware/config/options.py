"""Settings: each is defined once, in one table, with its variable, bounds, meaning and reason.

Precedence: mark, constructor argument, `SSE_*` variable, legacy variable (no prefix), default. A
value that is not allowed is an error in an argument or a `SSE_*` variable; in a legacy variable,
which may belong to another program, it is ignored with a warning.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Final, Literal, get_args

from sse_middleware.config import fields
from sse_middleware.config.endpoint_options import EndpointOptions
from sse_middleware.config.silence import silence_for
from sse_middleware.errors import ConfigurationError

logger = logging.getLogger("sse_middleware")

_SIMILAR: Final = 0.8  # of 1 for equal names; other programs have variables too

LimitAction = Literal["evict_oldest", "reject"]


@dataclass(frozen=True, kw_only=True)
class Options(EndpointOptions):
    """All settings. `from_environ` reads, validates and combines all sources."""

    max_lingering: int = fields.integer(
        "SSE_MAX_LINGERING",
        100,
        "Maximum number of lingering apps; of too many, the client with most loses its oldest.",
        lowest=0,
        highest=1_000_000,
        unit="streams",
    )
    max_readers: int = fields.integer(
        "SSE_MAX_READERS",
        100,
        "Maximum number of connections per process that follow one stream.",
        lowest=1,
        highest=1_000_000,
        unit="connections",
    )
    replay_max_events: int = fields.integer(
        "SSE_REPLAY_MAX_EVENTS",
        10_000,
        "Number of events of a stream that are kept; 0: none, and streams cannot be resumed.",
        lowest=0,
        highest=10_000_000,
        unit="events",
    )
    replay_max_bytes: int = fields.integer(
        "SSE_REPLAY_MAX_BYTES",
        4 << 20,
        "Number of bytes of a stream that are kept.",
        lowest=1024,
        highest=1 << 30,
        unit="bytes",
    )
    replay_ttl: float = fields.seconds(
        "SSE_REPLAY_TTL",
        60.0,
        "Time for which the events of a stream are kept after its end.",
        lowest=0.0,
        may_be_off=False,
    )
    memory_max_bytes: int = fields.integer(
        "SSE_MEMORY_MAX_BYTES",
        256 << 20,
        "Memory for the events of a process. The stream that ended first is dropped first; then "
        "the largest running one loses its oldest events.",
        lowest=1 << 16,
        highest=1 << 50,
        unit="bytes",
    )
    redis_url: str = fields.url(
        "SSE_REDIS_URL",
        "The Redis that keeps the events of all workers; empty: the memory of each process.",
        schemes=(
            *("redis", "rediss", "unix", "redis+cluster", "rediss+cluster"),
            *("redis+sentinel", "rediss+sentinel"),
        ),
    )
    redis_prefix: str = fields.text(
        "SSE_REDIS_PREFIX",
        "sse:",
        "Prefix of all Redis keys.",
        pattern=r"[A-Za-z0-9._:-]{0,64}",
        allowed="at most 64 of A-Z, a-z, 0-9 and . _ : -",
    )
    channel_ttl: float = fields.seconds(
        "SSE_CHANNEL_TTL",
        3600.0,
        "Time for which a channel is kept after its last event, for browsers that connect late.",
        lowest=0.05,
        may_be_off=False,
    )
    channel_max_events: int = fields.integer(
        "SSE_CHANNEL_MAX_EVENTS",
        10_000,
        "Number of events of a channel that are kept.",
        lowest=1,
        highest=10_000_000,
        unit="events",
    )
    channel_max_bytes: int = fields.integer(
        "SSE_CHANNEL_MAX_BYTES",
        4 << 20,
        "Number of bytes of a channel that are kept.",
        lowest=1024,
        highest=1 << 30,
        unit="bytes",
    )
    identity_cookies: tuple[str, ...] = fields.cookie_names(
        "SSE_IDENTITY_COOKIES",
        "Cookies that identify the client of a request without `Authorization`; a stream can only "
        "be resumed with the same values.",
    )
    secret: str = fields.secret(
        "SSE_SECRET",
        "Key of the digests of identities, for all workers. Unless it is set, it is random, and "
        "workers share it in Redis.",
    )
    max_streams: int | None = fields.integer(
        "SSE_MAX_STREAMS",
        None,
        "Maximum number of open streams per process; `off`: no limit. Streams that linger do not "
        "count. Of the connections that follow streams, there may be as many, or "
        "`SSE_MAX_READERS` if that is more.",
        lowest=1,
        highest=1_000_000,
        unit="streams",
    )
    max_streams_per_client: int | None = fields.integer(
        "SSE_MAX_STREAMS_PER_CLIENT",
        None,
        "Maximum number of open streams per client, identified by its identity or else its "
        "address; with `SSE_REDIS_URL`, across all workers.",
        lowest=1,
        highest=100_000,
        unit="streams",
    )
    limit_action: LimitAction = fields.choice(  # noqa: RUF009 - returns a field
        "SSE_LIMIT_ACTION",
        "evict_oldest",
        "At these limits, a new stream ends an older one (`evict_oldest`) or is answered with 429 "
        "or 503 (`reject`). Unless it is set, an `EventSource`, which never reconnects after such "
        "a status, ends an older stream, and other clients are rejected.",
        values=get_args(LimitAction),
    )
    open_rate: str = fields.text(
        "SSE_OPEN_RATE",
        "",
        "How often a client may open a stream; empty: no limit. Needs `sse-middleware[limits]`.",
        pattern=r"([1-9]\d{0,5} ?(/|per) ?([1-9]\d{0,4} )?(second|minute|hour|day)s?)?",
        allowed="a number per second, minute, hour or day, such as 30/minute, or nothing",
    )
    trusted_proxies: tuple[str, ...] = fields.networks(
        "SSE_TRUSTED_PROXIES",
        "Proxies that are trusted to name the address of the client in `X-Forwarded-For` or "
        "`Forwarded`; `unix`: all clients that connect by a unix socket.",
    )
    mark: tuple[str, ...] = fields.globs(
        "SSE_MARK",
        "Paths whose streams are marked, such as `/chat/*,/feed` (`*` also matches `/`); `*`: all; "
        "empty: none. A mark on the endpoint has precedence.",
    )
    compression: tuple[str, ...] = fields.codings(
        "SSE_COMPRESSION",
        "Content codings in which marked streams are sent, the best one first, such as "
        "`zstd,gzip`; empty: none. A response with a `Content-Encoding` is left alone, also with "
        "`identity`.",
    )
    include: tuple[str, ...] = fields.globs(
        "SSE_INCLUDE", "Paths that the middleware acts on; empty: all."
    )
    exclude: tuple[str, ...] = fields.globs("SSE_EXCLUDE", "Paths that it ignores.")
    only_marked: bool = fields.boolean(
        "SSE_ONLY_MARKED", "Whether it acts on marked endpoints only.", default=False
    )
    ready_path: str = fields.text(
        "SSE_READY_PATH",
        "",
        "Path that answers 200, and 503 once the server shuts down, below the app's `root_path`.",
        pattern=r"(/[^?#\s]+)?",
        allowed="a path with a / first, or nothing",
    )
    drain_path: str = fields.text(
        "SSE_DRAIN_PATH",
        "",
        "Path of which a GET begins the shutdown of all streams and is answered when they have "
        "ended, for a `preStop` hook, below the app's `root_path`. Requests with a header of a "
        "proxy are passed to the app. Empty: none.",
        pattern=r"(/[^?#\s]+)?",
        allowed="a path with a / first, or nothing",
    )
    metrics_path: str = fields.text(
        "SSE_METRICS_PATH",
        "/metrics",
        "Path of the metrics, below the app's `root_path`; empty: none. If it is set, all metrics "
        "of the registry are served there; if not, only `sse_*`, and an app that serves the path "
        "keeps it.",
        pattern=r"(/[^?#\s]+)?",
        allowed="a path with a / first, or nothing",
    )
    admin_path: str = fields.text(
        "SSE_ADMIN_PATH",
        "",
        "Path of a live page for operators, such as `/sse-admin`, below the app's `root_path`; it "
        "needs `SSE_ADMIN_TOKEN`. Empty: none.",
        pattern=r"(/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-])?",
        allowed="a path with a / first and of A-Z, a-z, 0-9 and . _ ~ / -, or nothing",
    )
    admin_token: str = fields.secret("SSE_ADMIN_TOKEN", "Token for the live page.")
    admin_payloads: bool = fields.boolean(
        "SSE_ADMIN_PAYLOADS",
        "Whether the live page may show the frames of a stream.",
        default=False,
    )
    client_path: str = fields.text(
        "SSE_CLIENT_PATH",
        "",
        "Path of the browser client, such as `/sse-client.js`, below the app's `root_path`; the "
        "React hook is in the same folder. Empty: none.",
        pattern=r"(/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-])?",
        allowed="a path with a / first and of A-Z, a-z, 0-9 and . _ ~ / -, or nothing",
    )
    rollout_percent: int = fields.integer(
        "SSE_ROLLOUT_PERCENT",
        100,
        "Share of clients that the middleware acts for; the streams of the others are measured and "
        "not changed (client kind `off`), but limited.",
        lowest=0,
        highest=100,
        unit="percent",
    )
    rollout_users: tuple[str, ...] = fields.string_list(
        "SSE_ROLLOUT_USERS",
        "Identities, as the argument `identify` returns them, for which the middleware acts in any "
        "case. Unless `SSE_ROLLOUT_PERCENT` is set, it acts for no other clients then.",
        is_item=str,
        allowed="identities",
    )
    usage_cost: bool = fields.boolean(
        "SSE_USAGE_COST",
        "Whether reported tokens are priced, by the tables of genai-prices. Needs "
        "`sse-middleware[usage]`.",
        default=False,
    )

    explicit: frozenset[str] = frozenset()
    """The names of the fields that are set by a mark, an argument or a variable."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **arguments: object) -> "Options":
        """Combine `arguments` (by field name), the variables of `environ` and the defaults.

        Raises:
            ConfigurationError: an argument or a `SSE_*` variable is not allowed.
            TypeError: there is no such option.
        """
        values = validate(arguments)
        for name, setting in SETTINGS.items():
            if name not in values and (found := fields.read_variable(setting, environ)):
                values[name] = found[0]
        for variable in environ:
            if variable.startswith(_PREFIX) and variable not in _VARIABLES:
                _warn_of_variable(variable)
        return _with_silence(cls(**values, explicit=frozenset(values)))

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Options":
        """Return these options with the `overrides` of a mark, which are validated already."""
        explicit = self.explicit | overrides.keys()
        return _with_silence(dataclasses.replace(self, **overrides, explicit=explicit))


SETTINGS: Mapping[str, fields.Setting] = {
    item.name: item.metadata["setting"]
    for item in dataclasses.fields(Options)
    if "setting" in item.metadata
}
"""The table of settings, by field name."""

PER_ENDPOINT = frozenset(item.name for item in dataclasses.fields(EndpointOptions))
"""The names of those that a mark may override."""


OF_APP: Final = (
    *("marks", "registry", "tracer_provider", "store"),
    *("identify", "authorize_resume", "expires_at", "rollout"),
)
"""The arguments of the middleware that are no settings."""
OF_MARK: Final = (
    *("name", "family", "stream_name", "ids", "stream_key", "attach", "cache_ttl", "rerun"),
    *("on_end", "transform", "order", "collect"),
)
"""The arguments of a mark that are no settings."""

_PREFIX: Final = "SSE_"
_VARIABLES: Final = frozenset(setting.env for setting in SETTINGS.values())


@cache
def _warn_of_variable(variable: str) -> None:
    """Log once that no setting has a variable, if one has nearly its name."""
    if similar := get_close_matches(variable, _VARIABLES, n=1, cutoff=_SIMILAR):
        logger.warning(
            "There is no setting %s, so it has no effect. Did you mean %s?", variable, similar[0]
        )


def _text_of_unknown(names: Collection[str], allowed: Collection[str]) -> str:
    """Return a text about options that do not exist."""
    similar = [match for name in names for match in get_close_matches(name, allowed, n=1)]
    known, listed = (
        ("there are", allowed) if len(similar) < len(names) else ("did you mean", similar)
    )
    return f"no such option: {', '.join(names)}; {known}: {', '.join(listed)}"


def _text_of_misplaced(name: str, *, is_of_mark: bool) -> str:
    """Return a text about an option of a mark on the app, or one of the app on a mark."""
    if is_of_mark:
        return f"not an option of the app: {name}; set it on a mark: @streaming({name}=...)"
    variable = f", or {SETTINGS[name].env}" if name in SETTINGS else ""
    return (
        f"not an option of one endpoint: {name}; set it for the app: "
        f"SSEMiddleware(app, {name}=...){variable}"
    )


def validate(arguments: Mapping[str, object], *, per_endpoint: bool = False) -> dict[str, Any]:
    """Return `arguments`, as they are stored, if each is a field of `Options` and allowed.

    Args:
        arguments: the values, by field name.
        per_endpoint: whether they are those of a mark.

    Raises:
        ConfigurationError: a value is not allowed.
        TypeError: there is no such option, or it is not an option of one endpoint.
    """
    allowed = [name for name in SETTINGS if name in PER_ENDPOINT or not per_endpoint]
    if misplaced := sorted(arguments.keys() & (OF_APP if per_endpoint else OF_MARK)):
        raise TypeError(_text_of_misplaced(misplaced[0], is_of_mark=not per_endpoint))
    if unknown := sorted(arguments.keys() - SETTINGS.keys()):
        others = OF_MARK if per_endpoint else OF_APP
        raise TypeError(_text_of_unknown(unknown, (*allowed, *others)))
    for name in sorted(arguments.keys() - set(allowed)):
        raise TypeError(_text_of_misplaced(name, is_of_mark=False))
    values = {name: SETTINGS[name].convert(value) for name, value in arguments.items()}
    for name, value in values.items():
        if not SETTINGS[name].check(value):
            setting = SETTINGS[name]
            hint = _hint(setting, value) if isinstance(value, str) else ""
            raise ConfigurationError(name, setting.redact(value), setting.allowed + hint)
    return values


def _hint(setting: fields.Setting, text: str) -> str:
    """Return a hint if a text is an allowed value in the form that a variable has."""
    try:
        parsed = setting.parse(text)
    except ValueError:
        return ""
    return f"; in Python, that is {parsed!r}" if setting.check(parsed) else ""


def _with_silence(options: Options) -> Options:
    """Return `options` with a silence threshold that suits the heartbeats."""
    silence = silence_for(
        options.silence_threshold,
        options.heartbeat_interval,
        is_set="silence_threshold" in options.explicit,
    )
    return dataclasses.replace(options, silence_threshold=silence)
