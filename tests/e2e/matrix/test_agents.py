"""Tracers and error trackers around the middleware observe the same as without it."""

import functools
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support import needs
from tests.support.needs import REPOSITORY
from tests.support.waiting import HANG_SECONDS

PACKAGES = {
    "opentelemetry": "opentelemetry.instrumentation.asgi",
    "elastic": "elasticapm",
    "sentry": "sentry_sdk",
    "newrelic": "newrelic.agent",
}


@functools.cache
def observed_by(agent: str) -> Any:
    """Return what an agent has observed, in a process of its own: agents change classes."""
    needs.module(PACKAGES[agent])
    command = [sys.executable, "-m", "tests.e2e.matrix.agents", agent]
    ran = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("client", ["eventsource", "plain"])
def test_opentelemetry_has_one_trace_of_an_app_that_does_not_listen(client: str) -> None:
    found = observed_by("opentelemetry")
    assert found[f"unmarked {client}"] == found[f"bare {client}"]
    for mode in ("bare", "unmarked", "marked"):
        assert found[f"{mode} {client}"]["traces"] == 1
        assert len(found[f"{mode} {client}"]["roots"]) == 1
    assert found[f"marked {client}"]["received"] > found[f"bare {client}"]["received"]


def test_elastics_agent_which_repeats_the_body_is_not_asked_for_it_in_a_loop() -> None:
    found = observed_by("elastic")
    for client in ("eventsource", "plain"):
        assert found[f"bare {client}"] == found[f"unmarked {client}"] == 1
        assert found[f"marked {client}"] <= 3


def test_sentry_raises_one_alarm_for_one_failure() -> None:
    found = observed_by("sentry")
    assert len(found) == 6
    for mode, alarms in found.items():
        assert alarms == ["error ValueError"], mode


def test_new_relics_proxies_of_classes_do_not_move_the_middleware_outside_of_cors() -> None:
    found = observed_by("newrelic")
    assert found["cors first"] == [True, False]
    assert found["names"] == ["start", "message", "error"]
    assert found["origin"] == "https://app.example"
