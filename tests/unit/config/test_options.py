"""Settings: every variable at its bounds, and the precedence of their sources."""

import dataclasses
import logging
from typing import get_type_hints

import pytest

from sse_middleware.config.arguments import EndpointArguments, OptionArguments, Strings
from sse_middleware.config.options import PER_ENDPOINT, SETTINGS, Options, validate
from sse_middleware.errors import ConfigurationError, SSEError
from sse_middleware.limits.admission_check import evicts

SECONDS = {
    "stream_max_seconds": ("SSE_STREAM_MAX_SECONDS", "STREAM_MAX_SECONDS"),
    "heartbeat_interval": ("SSE_HEARTBEAT_INTERVAL", "HEARTBEAT_INTERVAL"),
    "silence_threshold": ("SSE_SILENCE_THRESHOLD", "SILENCE_THRESHOLD"),
}
SECONDS_ALLOWED = "seconds from 0.05 to 31536000, or off (None)"
INTEGERS = {
    "chunk_delay_ms": ("SSE_CHUNK_DELAY_MS", 0, 60_000, "milliseconds"),
    "retry_ms": ("SSE_RETRY_MS", 0, 3_600_000, "milliseconds"),
    "max_event_bytes": ("SSE_MAX_EVENT_BYTES", 1024, 1 << 30, "bytes"),
    "rollout_percent": ("SSE_ROLLOUT_PERCENT", 0, 100, "percent"),
}
BOOLEAN_ALLOWED = "1, true, yes, on, 0, false, no or off"

BAD_SECONDS = [
    *("0", "0.0", "-0", "0.049999", "-1", "-5.0", "31536001", "1e8", "1e400", "9" * 400),
    *("nan", "-nan", "inf", "-inf", "infinity", "five", "5s", "5 5", "0x5", "5,0", "None", "true"),
    *("5\0", "\u00bd", "off.", "5\r\nx: y"),
]
GOOD_SECONDS = [("0.05", 0.05), ("5", 5.0), ("1e3", 1000.0), (" 5 ", 5.0), ("31536000", 31536e3)]


def read(environ: dict[str, str], name: str, **arguments: object) -> object:
    return getattr(Options.from_environ(environ, **arguments), name)


# --- defaults ---------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_design() -> None:
    assert Options.from_environ({}) == Options(
        enabled=True,
        stream_max_seconds=60.0,
        heartbeat_interval=5.0,
        silence_threshold=15.0,
        retry_ms=2000,
        max_event_bytes=1 << 20,
        explicit=frozenset(),
    )
    assert Options.from_environ({}) == Options()


def test_every_default_is_allowed_as_an_argument() -> None:
    options = Options()
    arguments = {name: getattr(options, name) for name in SETTINGS}
    assert Options.from_environ({}, **arguments) == dataclasses.replace(
        options, explicit=frozenset(SETTINGS)
    )


def test_a_type_checker_knows_each_option_and_its_type() -> None:
    declared = get_type_hints(OptionArguments)
    stored = {name: get_type_hints(Options)[name] for name in SETTINGS}
    texts = tuple[str, ...]  # an argument may also be a list, or one string
    assert declared == {name: Strings if hint == texts else hint for name, hint in stored.items()}


def test_a_type_checker_knows_the_options_of_an_endpoint() -> None:
    assert EndpointArguments.__annotations__.keys() == PER_ENDPOINT


@pytest.mark.parametrize("name", SETTINGS)
def test_a_mark_overrides_an_option_only_if_it_is_per_endpoint(name: str) -> None:
    value = getattr(Options(), name)
    if name in PER_ENDPOINT:
        assert validate({name: value}, per_endpoint=True) == {name: value}
    else:
        with pytest.raises(TypeError, match=f"not an option of one endpoint: {name}"):
            validate({name: value}, per_endpoint=True)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().retry_ms = 1  # type: ignore[misc]


def test_every_field_but_explicit_is_a_setting_with_a_variable_of_its_own() -> None:
    fields = {field.name for field in dataclasses.fields(Options)}
    assert fields == {*SETTINGS, "explicit"}
    variables = [setting.env for setting in SETTINGS.values()]
    assert len(set(variables)) == len(variables)
    assert all(variable.startswith("SSE_") for variable in variables)


# --- seconds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(("text", "value"), GOOD_SECONDS)
def test_seconds_are_read_from_the_variable(name: str, text: str, value: float) -> None:
    assert read({SECONDS[name][0]: text}, name) == value


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("text", ["off", "OFF", " Off "])
def test_off_is_none(name: str, text: str) -> None:
    assert read({SECONDS[name][0]: text}, name) is None
    assert read({SECONDS[name][1]: text}, name) is None


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("text", BAD_SECONDS, ids=lambda text: ascii(text)[:12])
def test_seconds_out_of_bounds_stop_the_start_up(name: str, text: str) -> None:
    variable = SECONDS[name][0]
    with pytest.raises(ConfigurationError) as caught:
        Options.from_environ({variable: text})
    assert (caught.value.name, caught.value.got) == (variable, text)
    assert caught.value.allowed == SECONDS_ALLOWED


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [0.05, 1, 5.5, 31_536_000, None], ids=repr)
def test_seconds_are_taken_from_the_argument(name: str, value: float | None) -> None:
    assert read({}, name, **{name: value}) == value


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(
    "value",
    [0, 0.0, 0.049, -1, 31_536_001, float("nan"), float("inf"), True, False, "5", "off", b"5", [5]],
    ids=repr,
)
def test_seconds_of_another_type_or_out_of_bounds_are_rejected(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Options.from_environ({}, **{name: value})
    assert caught.value.name == name
    assert caught.value.got is value
    in_python = {"5": "; in Python, that is 5.0", "off": "; in Python, that is None"}
    hint = in_python.get(value, "") if isinstance(value, str) else ""
    assert caught.value.allowed == SECONDS_ALLOWED + hint


# --- integers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_taken_at_their_bounds(name: str) -> None:
    variable, lowest, highest, _ = INTEGERS[name]
    for value in (lowest, lowest + 1, highest):
        assert read({variable: f" {value} "}, name) == value
        assert read({}, name, **{name: value}) == value


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(
    "text",
    ["2000.0", "2e3", "-1", "off", "nan", "inf", "true", "2k", "0x800", "2 000", "9" * 5000],
    ids=lambda text: text[:12],
)
def test_a_value_that_is_no_integer_in_bounds_stops_the_start_up(name: str, text: str) -> None:
    variable, lowest, highest, unit = INTEGERS[name]
    with pytest.raises(ConfigurationError) as caught:
        Options.from_environ({variable: text})
    assert (caught.value.name, caught.value.got) == (variable, text)
    assert caught.value.allowed == f"whole {unit} from {lowest} to {highest}"


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_just_out_of_bounds_are_rejected(name: str) -> None:
    variable, lowest, highest, _ = INTEGERS[name]
    for value in (lowest - 1, highest + 1):
        with pytest.raises(ConfigurationError):
            Options.from_environ({variable: str(value)})
        with pytest.raises(ConfigurationError):
            Options.from_environ({}, **{name: value})


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", [2000.0, True, None, "2000", float("nan")], ids=repr)
def test_an_argument_that_is_no_int_is_rejected(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError):
        Options.from_environ({}, **{name: value})


@pytest.mark.parametrize("name", [*SECONDS, *INTEGERS])
def test_an_int_too_large_for_a_float_is_rejected_like_any_other(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Options.from_environ({}, **{name: 10**400})
    assert caught.value.name == name


@pytest.mark.parametrize("name", INTEGERS)
def test_a_text_of_400_digits_is_rejected_like_any_other(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Options.from_environ({INTEGERS[name][0]: "9" * 400})
    assert caught.value.name == INTEGERS[name][0]


# --- booleans ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1", "true", "True", "yes", "YES", "on", " on "])
def test_a_boolean_is_set_by_each_of_its_spellings(text: str) -> None:
    assert read({"SSE_ENABLED": text}, "enabled") is True


@pytest.mark.parametrize("text", ["0", "false", "False", "no", "NO", "off", " off "])
def test_a_boolean_is_cleared_by_each_of_its_spellings(text: str) -> None:
    assert read({"SSE_ENABLED": text}, "enabled") is False


@pytest.mark.parametrize("text", ["2", "y", "enabled", "00", "None", "1.0", "\u0661"], ids=ascii)
def test_another_spelling_of_a_boolean_stops_the_start_up(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Options.from_environ({"SSE_ENABLED": text})
    assert str(caught.value) == f"SSE_ENABLED is {text!a}, allowed is {BOOLEAN_ALLOWED}"


@pytest.mark.parametrize("value", [1, 0, "1", None, "off"], ids=repr)
def test_a_boolean_argument_is_a_bool(value: object) -> None:
    assert read({}, "enabled", enabled=False) is False
    with pytest.raises(ConfigurationError):
        Options.from_environ({}, enabled=value)


# --- precedence -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECONDS)
def test_the_argument_wins_over_sse_which_wins_over_the_legacy_name(name: str) -> None:
    prefixed, legacy = SECONDS[name]
    assert read({legacy: "7"}, name) == 7
    assert read({legacy: "7", prefixed: "8"}, name) == 8
    assert read({legacy: "7", prefixed: "8"}, name, **{name: 9}) == 9
    assert read({legacy: "7", prefixed: "8"}, name, **{name: None}) is None


@pytest.mark.parametrize("name", SECONDS)
def test_a_blank_variable_is_no_variable(name: str) -> None:
    prefixed, legacy = SECONDS[name]
    assert read({prefixed: "", legacy: "7"}, name) == 7
    assert read({prefixed: " \t", legacy: ""}, name) == getattr(Options(), name)
    assert Options.from_environ({prefixed: "", legacy: " "}).explicit == frozenset()


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("text", BAD_SECONDS, ids=lambda text: ascii(text)[:12])
def test_a_bad_legacy_value_is_a_warning_on_one_line_and_ignored(
    name: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    prefixed, legacy = SECONDS[name]
    with caplog.at_level(logging.DEBUG, "sse_middleware"):
        options = Options.from_environ({legacy: text})
    assert options == Options()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("sse_middleware", logging.WARNING)
    message = record.getMessage()
    assert message.startswith(f"{legacy} is '")
    assert message.endswith(
        f", allowed is {SECONDS_ALLOWED}; the variable is ignored, set {prefixed} instead"
    )
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize("name", SECONDS)
def test_a_bad_legacy_value_is_ignored_if_another_source_has_precedence(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    prefixed, legacy = SECONDS[name]
    assert read({prefixed: "8", legacy: "bad"}, name) == 8
    assert read({legacy: "bad"}, name, **{name: 9}) == 9
    assert caplog.records == []


@pytest.mark.parametrize("name", SECONDS)
def test_a_bad_sse_value_is_an_error_even_if_the_legacy_one_is_valid(name: str) -> None:
    prefixed, legacy = SECONDS[name]
    with pytest.raises(ConfigurationError):
        Options.from_environ({prefixed: "bad", legacy: "7"})


def test_variables_of_others_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    others = {
        "ENABLED": "0",
        "RETRY_MS": "1",
        "MAX_EVENT_BYTES": "2",
        "SSE_": "3",
        "SSE_OTHER": "4",
    }
    assert Options.from_environ(others) == Options()
    assert caplog.records == []


def test_a_variable_without_a_name_sets_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert Options.from_environ({"": "5000"}) == Options()
    assert caplog.records == []


# --- explicit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "arguments", "explicit"),
    [
        pytest.param({}, {}, set(), id="nothing"),
        pytest.param({"SSE_RETRY_MS": "2000"}, {}, {"retry_ms"}, id="a default by variable"),
        pytest.param({}, {"retry_ms": 2000}, {"retry_ms"}, id="a default by argument"),
        pytest.param({"HEARTBEAT_INTERVAL": "5"}, {}, {"heartbeat_interval"}, id="a legacy name"),
        pytest.param({"HEARTBEAT_INTERVAL": "bad"}, {}, set(), id="a bad legacy value"),
        pytest.param(
            {"SSE_STREAM_MAX_SECONDS": "off"}, {}, {"stream_max_seconds"}, id="off by variable"
        ),
        pytest.param(
            {}, {"stream_max_seconds": None}, {"stream_max_seconds"}, id="None by argument"
        ),
        pytest.param(
            {"SSE_ENABLED": "1", "SILENCE_THRESHOLD": "20"},
            {"enabled": True, "max_event_bytes": 2048},
            {"enabled", "silence_threshold", "max_event_bytes"},
            id="from everywhere",
        ),
    ],
)
def test_explicit_contains_the_names_of_the_options_that_are_set(
    environ: dict[str, str], arguments: dict[str, object], explicit: set[str]
) -> None:
    assert Options.from_environ(environ, **arguments).explicit == explicit


@pytest.mark.parametrize(
    ("environ", "arguments", "silence"),
    [
        pytest.param({"SSE_HEARTBEAT_INTERVAL": "1"}, {}, 15, id="more heartbeats"),
        pytest.param({"SSE_HEARTBEAT_INTERVAL": "30"}, {}, 90, id="fewer heartbeats"),
        pytest.param({"HEARTBEAT_INTERVAL": "off"}, {}, None, id="no heartbeats"),
        pytest.param({"SSE_SILENCE_THRESHOLD": "off"}, {}, None, id="off"),
        pytest.param(
            {"SILENCE_THRESHOLD": "20"}, {"heartbeat_interval": None}, 20, id="set without any"
        ),
        pytest.param(
            {"SSE_HEARTBEAT_INTERVAL": "30"}, {"silence_threshold": 31}, 31, id="set to enough"
        ),
    ],
)
def test_the_default_silence_follows_from_the_heartbeats(
    environ: dict[str, str],
    arguments: dict[str, object],
    silence: float | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert read(environ, "silence_threshold", **arguments) == silence
    assert not caplog.records


def test_a_mark_with_other_heartbeats_has_another_silence() -> None:
    options = Options.from_environ({"SSE_HEARTBEAT_INTERVAL": "30"})
    assert options.with_overrides({"heartbeat_interval": 40.0}).silence_threshold == 120
    assert options.with_overrides({"heartbeat_interval": None}).silence_threshold is None
    assert options.with_overrides({"silence_threshold": 50.0}).silence_threshold == 50
    assert options.with_overrides({"retry_ms": 1}).silence_threshold == 90


def test_a_silence_shorter_than_that_between_two_heartbeats_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    environ = {"SSE_HEARTBEAT_INTERVAL": "20", "SILENCE_THRESHOLD": "15"}
    assert read(environ, "silence_threshold") == 15
    (record,) = caplog.records
    assert "silence_threshold is 15 s and heartbeat_interval 20 s" in record.getMessage()


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"pulse": 5}, id="no such field"),
        pytest.param({"explicit": frozenset(("enabled",))}, id="explicit is no option"),
        pytest.param({"SSE_RETRY_MS": 5}, id="a variable's name"),
    ],
)
def test_the_error_for_an_unknown_argument_lists_the_known_ones(
    arguments: dict[str, object],
) -> None:
    (unknown,) = arguments
    with pytest.raises(
        TypeError, match=f"no such option: {unknown}; there are: enabled, "
    ) as caught:
        Options.from_environ({}, **arguments)
    assert all(name in str(caught.value) for name in SETTINGS)


def test_one_error_names_all_unknown_arguments() -> None:
    with pytest.raises(TypeError, match="no such option: a, b;"):
        Options.from_environ({}, b=1, a=2, retry_ms=3)


@pytest.mark.parametrize(
    ("environ", "arguments", "message"),
    [
        pytest.param(
            {"SSE_HEARTBEAT_INTERVAL": "0"},
            {},
            "SSE_HEARTBEAT_INTERVAL is '0', allowed is " + SECONDS_ALLOWED,
            id="a variable",
        ),
        pytest.param(
            {},
            {"heartbeat_interval": 0},
            "heartbeat_interval is 0, allowed is " + SECONDS_ALLOWED,
            id="an argument",
        ),
        pytest.param(
            {"SSE_MAX_EVENT_BYTES": "1023"},
            {},
            "SSE_MAX_EVENT_BYTES is '1023', allowed is whole bytes from 1024 to 1073741824",
            id="an integer",
        ),
        pytest.param(
            {"SSE_RETRY_MS": "2s"},
            {},
            "SSE_RETRY_MS is '2s', allowed is whole milliseconds from 0 to 3600000",
            id="an integer with a unit",
        ),
    ],
)
def test_an_error_names_the_setting_its_value_and_the_allowed_values(
    environ: dict[str, str], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Options.from_environ(environ, **arguments)
    assert str(caught.value) == message
    assert isinstance(caught.value, SSEError)
    assert isinstance(caught.value, ValueError)


def test_an_error_keeps_the_message_of_the_parser() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Options.from_environ({"SSE_RETRY_MS": "2s"})
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_shows_a_long_value_shortened_and_on_one_line() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Options.from_environ({"SSE_RETRY_MS": "x\n" * 10_000})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("variable", "good", "bad"),
    [
        ("SSE_EVENT_PREFIX", ["", "sse-", "a.b_c:", "x" * 32], ["x" * 33, "a b", "a\nb", "\u00fc"]),
        ("SSE_COMMENT_STYLE", ["auto", "line", "block"], ["Line", "none", "\u00fc"]),
        ("SSE_METRICS_PATH", ["", "/m", "/a/b.c"], ["m", "/", "/m?x", "/m#x", "/m n", "/m\n"]),
        ("SSE_INCLUDE", ["/a", "/a/*, *.sse", "/a,"], ["a", "/a,b", "a/*,/b"]),
        ("SSE_EXCLUDE", ["/a", "*"], ["private"]),
        ("SSE_ONLY_MARKED", ["1", "Off"], ["2", "marked"]),
        ("SSE_TRACE_IN_DATA", ["yes", "no"], ["y", "data"]),
    ],
)
def test_a_text_or_list_accepts_its_values_and_names_a_value_it_rejects(
    variable: str, good: list[str], bad: list[str]
) -> None:
    for text in good:
        assert Options.from_environ({variable: text})
    for text in bad:
        with pytest.raises(ConfigurationError) as caught:
            Options.from_environ({variable: text.replace("\n", "\n.")})
        assert caught.value.name == variable
        assert "allowed is" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_globs_are_trimmed_and_empty_ones_passed_over() -> None:
    assert Options.from_environ({"SSE_INCLUDE": " /a/* ,, /b "}).include == ("/a/*", "/b")
    assert Options.from_environ({"SSE_INCLUDE": " "}).include == ()


GLOBS = ["mark", "include", "exclude"]


@pytest.mark.parametrize("name", GLOBS)
@pytest.mark.parametrize("value", ["/a, *b", ["/a", "*b"], ("/a", "*b")])
def test_globs_by_argument_are_a_list_or_one_text(name: str, value: object) -> None:
    assert read({}, name, **{name: value}) == ("/a", "*b")


@pytest.mark.parametrize("name", GLOBS)
@pytest.mark.parametrize("value", ["a", "/a, b", ("a",), ["?a"], (1,), None, 5])
def test_globs_begin_with_a_slash_or_a_star(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match="allowed is path globs below"):
        Options.from_environ({}, **{name: value})


@pytest.mark.parametrize("name", GLOBS)
def test_globs_of_a_variable_begin_with_a_slash_or_a_star(name: str) -> None:
    variable = f"SSE_{name.upper()}"
    with pytest.raises(ConfigurationError, match=f"{variable} is '/a, chat', allowed is path"):
        Options.from_environ({variable: "/a, chat"})


LIMITS = {
    "max_streams": ("SSE_MAX_STREAMS", 1_000_000),
    "max_streams_per_client": ("SSE_MAX_STREAMS_PER_CLIENT", 100_000),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_off_or_a_number_from_one_on(name: str) -> None:
    variable, highest = LIMITS[name]
    assert getattr(Options(), name) is None
    for text, value in (("1", 1), (str(highest), highest), ("off", None), (" OFF ", None)):
        assert read({variable: text}, name) == value
        assert read({}, name, **{name: value}) == value
    for text in ("0", "-1", str(highest + 1), "1.5", "many", "none", "\u00bd"):
        with pytest.raises(ConfigurationError, match=f"{variable} is .*, or off"):
            read({variable: text}, name)
    for bad in (0, -1, highest + 1, 1.5, "1", True, "off"):
        with pytest.raises(ConfigurationError, match=f"{name} is .*, or off"):
            read({}, name, **{name: bad})


def test_the_default_action_over_a_limit_depends_on_the_client() -> None:
    unset = Options.from_environ({})
    assert (evicts(unset, eventsource=True), evicts(unset, eventsource=False)) == (True, False)
    for text, expected in (("evict_oldest", True), ("reject", False)):
        options = Options.from_environ({"SSE_LIMIT_ACTION": text})
        assert {evicts(options, eventsource=one) for one in (True, False)} == {expected}
    with pytest.raises(ConfigurationError, match="allowed is evict_oldest or reject"):
        Options.from_environ({"SSE_LIMIT_ACTION": "evict"})


def test_an_empty_metrics_path_is_a_choice_and_an_empty_number_is_none() -> None:
    options = Options.from_environ({"SSE_METRICS_PATH": "", "SSE_RETRY_MS": ""})
    assert options.metrics_path == ""
    assert options.explicit == {"metrics_path"}
