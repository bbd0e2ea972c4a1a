"""The command line shows each setting and the source of its value."""

import re
import sys

import pytest

from sse_middleware import __version__
from sse_middleware.__main__ import main
from sse_middleware.config.groups import GROUPS
from sse_middleware.config.options import PER_ENDPOINT, SETTINGS


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSE_RETRY_MS", "SSE_METRICS_PATH", "SSE_INCLUDE", "HEARTBEAT_INTERVAL"):
        monkeypatch.delenv(name, raising=False)


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {row[0]: row[1:] for row in rows if row}


def test_config_shows_each_value_and_its_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSE_STREAM_MAX_SECONDS", "off")
    monkeypatch.setenv("HEARTBEAT_INTERVAL", "2.5")
    monkeypatch.setenv("SSE_INCLUDE", "/a/*, /b")
    monkeypatch.setenv("SSE_METRICS_PATH", "")
    assert main(["config"]) == 0
    shown = lines(capsys)
    assert shown["SSE_STREAM_MAX_SECONDS"] == ["off", "SSE_STREAM_MAX_SECONDS"]
    assert shown["SSE_HEARTBEAT_INTERVAL"] == ["2.5", "HEARTBEAT_INTERVAL"]
    assert shown["SSE_INCLUDE"] == ["/a/*,/b", "SSE_INCLUDE"]
    assert shown["SSE_METRICS_PATH"] == ["SSE_METRICS_PATH"]
    assert shown["SSE_RETRY_MS"] == ["2000", "default"]


def test_config_shows_what_the_settings_apply_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config"]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n# The app.\n")
    assert first.startswith("# Marked streams.")
    assert "SSE_HEARTBEAT_INTERVAL" in first
    assert "SSE_MAX_STREAMS" not in first
    assert "SSE_MAX_STREAMS" in rest
    assert "SSE_STREAM_MAX_SECONDS applies to EventSource clients only" in rest
    monkeypatch.setenv("SSE_STREAM_MAX_SECONDS", "300")
    assert main(["config"]) == 0
    assert "EventSource clients only" not in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"sse_middleware {__version__}\n"


def test_config_reports_an_error_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSE_RETRY_MS", "soon\nSSE_ENABLED=0")
    assert main(["config"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for word in ("SSE_RETRY_MS", "soon", "whole milliseconds from 0"):
        assert word in message


def test_config_can_write_the_tables_of_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--markdown"]) == 0
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if row[:3] == "| `"]
    assert {row[1].strip("`"): row[2] == "yes" for row in rows} == {
        name: name in PER_ENDPOINT for name in SETTINGS
    }


def test_each_setting_is_in_one_group() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted(SETTINGS)


MISTAKES = {
    "no command": ([], "the following arguments are required: command"),
    "an unknown command": (["confg"], r"invalid choice: 'confg'.*'?config'?, '?doctor'?"),
    "a URL without a scheme": (
        ["doctor", "localhost:8000"],
        "the URL is 'localhost:8000', allowed is one with http:// or https://, such as http://",
    ),
    "a time that is no number": (
        ["doctor", "http://localhost/", "--seconds", "abc"],
        "argument --seconds: it is 'abc', allowed is a number of seconds above 0",
    ),
    "a header without a colon": (
        ["doctor", "http://localhost/", "--header", "geheim"],
        "a --header has no name or no colon: write 'NAME: VALUE'",
    ),
    "a body in a file that is missing": (
        ["doctor", "http://localhost/", "--data", "@none.json"],
        "No such file or directory: 'none.json'",
    ),
    "no URL of a smoke test": (["smoke"], "give a URL, or --rollup FILE"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_command_is_explained(
    mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(arguments))
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)
