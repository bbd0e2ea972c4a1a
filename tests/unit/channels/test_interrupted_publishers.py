"""Exceptions at any point of a call of a `BlockingPublisher`, by a signal or in a thread."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

import pytest

from sse_middleware.channels import BlockingPublisher
from tests.support.interrupted_publishers import CHANNEL, THREADS
from tests.support.redis_channels import KEYS, ask
from tests.support.redis_server import RedisServer

_SECONDS = 120  # only guards against hanging

pytestmark = [
    pytest.mark.timeout(_SECONDS + 10),
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timers"),
]


def play(scene: str, server: RedisServer, count: int) -> dict[str, Any]:
    """Run a scene in another process, and return its report."""
    module = "tests.support.interrupted_publishers"
    command = [sys.executable, "-m", module, scene, server.patient_url, str(count)]
    done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def check_log(server: RedisServer, published: list[str]) -> None:
    """Check that each published event is kept once, and no event twice."""
    entries = ask(server, "XRANGE", KEYS.channel(CHANNEL).log, "-", "+")
    kept = Counter(json.loads(fields[b"d"]) for _, fields in entries)
    assert set(published) <= kept.keys()
    assert set(kept.values()) == {1}


def test_a_call_after_an_interrupted_one_gets_its_own_answer(server: RedisServer) -> None:
    report = play("signals", server, 2000)
    assert report["interrupted"] > 100
    assert report["wrong"] == []
    assert report["connections"] <= 2
    check_log(server, report["published"])


@pytest.mark.parametrize("scene", ["signals_while_others_publish", "threads"])
def test_an_interrupted_call_does_not_affect_other_threads(server: RedisServer, scene: str) -> None:
    report = play(scene, server, 500)
    assert report["interrupted"] > 50
    assert report["failures"] == report["hanging"] == report.get("hanging_victims", []) == []
    assert report["wrong"] == report["wrong_of_others"] == []
    assert report["connections"] <= THREADS + 1
    check_log(server, report["published"] + report["published_by_others"])


def test_a_signal_handler_publishes_during_a_call(server: RedisServer) -> None:
    report = play("handler", server, 300)
    assert report["wrong"] == []
    assert len(report["answers"]) > 30
    assert all(report["answers"])
    check_log(server, report["published"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_threads_of_a_forked_child_make_their_first_publish_together(server: RedisServer) -> None:
    assert play("forks", server, 40)["statuses"] == [0] * 40
    assert server.client.xlen(KEYS.channel(CHANNEL).log) == 1 + 40 * THREADS


def test_a_time_limit_of_python_is_not_a_failure_of_redis(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BlockingPublisher(server.patient_url) as publisher:
        publisher.ack("limits")
        with monkeypatch.context() as patched, pytest.raises(TimeoutError, match="the job"):
            patched.setattr("sse_middleware.channels.blocking_redis.pack_commands", time_out)
            publisher.publish("limits", "n", 1)
        assert publisher.publish("limits", "n", 2)


def time_out(_commands: object) -> bytes:
    raise TimeoutError("the job has no time left")


def test_a_time_limit_that_redis_py_has_wrapped_ends_the_call(server: RedisServer) -> None:
    previous = signal.signal(signal.SIGUSR1, raise_timeout)
    try:
        with BlockingPublisher(server.patient_url) as publisher:
            publisher.ack("limits")
            with server.stopped():
                timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
                timer.start()
                with pytest.raises(TimeoutError, match="the job"):
                    publisher.publish("limits", "n", 1)
                timer.join()
            assert publisher.publish("limits", "n", 2)
    finally:
        signal.signal(signal.SIGUSR1, previous)


def raise_timeout(_signal: int, _frame: object) -> None:
    raise TimeoutError("the job has no time left")


def test_connections_are_closed_with_the_publisher(server: RedisServer) -> None:
    publisher = BlockingPublisher(server.patient_url)
    publisher.ack("closed")
    assert server.connections() == 1
    publisher.close()
    assert publisher.publish("closed", "n", 1)
    publisher.close()
    assert server.client.xlen(KEYS.channel("closed").log) == 2
