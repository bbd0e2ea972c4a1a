"""Processes that publish from threads while exceptions are raised at random points of the calls.

Each prints one JSON object with its findings: `python interrupted_publishers.py NAME URL COUNT`.
"""

import ctypes
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis

from sse_middleware.channels import BlockingPublisher

CHANNEL = "interrupted"
THREADS = 8
_CHILD_SECONDS = 20
_ENOUGH = 100
"""Interrupted calls, for a test that means something; a busy machine needs more calls for them."""
_MOST = 20
"""Times the number of calls, at most."""
_random = random.Random(20)


class TimeLimitError(Exception):
    """What a job runner raises in the middle of anything."""


class Calls:
    """Calls with a known answer; the answer to another call is often a wrong one.

    Attributes:
        wrong: the calls with a wrong answer.
        published: the numbers of the events that are certainly in the channel.
        interrupted: the number of calls that raised the exception.
    """

    def __init__(self, publisher: BlockingPublisher, name: str) -> None:
        self._publisher = publisher
        self._name = name
        self.wrong: list[str] = []
        self.published: list[str] = []
        self.interrupted = 0
        publisher.publish(CHANNEL, "n", name, key=f"{name}-used")

    def call(self, number: int) -> None:
        """Publish an event, or one with a key that is in use."""
        name, is_new = f"{self._name}-{number}", _random.random() < 0.5
        key = name if is_new else f"{self._name}-used"
        answer = self._publisher.publish(CHANNEL, "n", name, key=key)
        if answer is not is_new:
            self.wrong.append(name)
        elif is_new:
            self.published.append(name)

    def report(self, **more: object) -> dict[str, object]:
        return {
            "wrong": self.wrong,
            "published": self.published,
            "interrupted": self.interrupted,
            **more,
        }


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `TimeLimitError` in this thread after some seconds."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def raise_limit(_signal: int, _frame: object) -> None:
    raise TimeLimitError


def signals(publisher: BlockingPublisher, count: int) -> dict[str, object]:
    """Interrupt the main thread by signals, as Celery's soft time limit does."""
    calls = Calls(publisher, "main")
    began = time.monotonic()
    for number in range(100):
        calls.call(-number - 1)
    usual = (time.monotonic() - began) / 100
    signal.signal(signal.SIGALRM, raise_limit)
    for number in range(_MOST * count):
        if number >= count and calls.interrupted > _ENOUGH:
            break
        try:
            with alarm(_random.uniform(1e-6, 2 * usual)):
                calls.call(number)
        except (TimeLimitError, UnboundLocalError) as exc:
            # redis-py 5 has a `finally` that fails so if its `try` is interrupted.
            if TimeLimitError not in {type(exc), type(exc.__context__)}:
                raise
            calls.interrupted += 1
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    return calls.report()


def signals_while_others_publish(publisher: BlockingPublisher, count: int) -> dict[str, object]:
    """The same, while other threads publish; they must notice nothing."""
    others = [Bystander(publisher, f"other-{number}", count) for number in range(3)]
    for other in others:
        other.thread.start()
    report = signals(publisher, count)
    return report | join(others)


def threads(publisher: BlockingPublisher, count: int) -> dict[str, object]:
    """Raise exceptions in some of several threads, as dramatiq's time limit does."""
    victims = [Victim(publisher, f"victim-{number}", count) for number in range(THREADS // 2)]
    others = [Bystander(publisher, f"other-{number}", count) for number in range(THREADS // 2)]
    for one in (*victims, *others):
        one.thread.start()
    while any(one.thread.is_alive() for one in (*victims, *others)):
        time.sleep(_random.uniform(0.0, 0.004))
        victim = _random.choice(victims)
        if victim.is_limited and victim.thread.ident:
            identity = ctypes.c_ulong(victim.thread.ident)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(TimeLimitError))
        if time.monotonic() > victim.deadline:
            break
    return {
        "wrong": [name for victim in victims for name in victim.calls.wrong],
        "published": [name for victim in victims for name in victim.calls.published],
        "interrupted": sum(victim.calls.interrupted for victim in victims),
        "hanging_victims": [one.name for one in victims if one.thread.is_alive()],
    } | join(others)


class Bystander:
    """A thread that is never interrupted."""

    def __init__(self, publisher: BlockingPublisher, name: str, count: int) -> None:
        self.name = name
        self.calls = Calls(publisher, name)
        self.failures: list[str] = []
        self.deadline = time.monotonic() + 90
        self.thread = threading.Thread(target=self.run, args=(count,), daemon=True)

    def run(self, count: int) -> None:
        for number in range(count):
            try:
                self.calls.call(number)
            except BaseException as exc:  # noqa: BLE001 - none is expected
                self.failures.append(repr(exc))


class Victim(Bystander):
    """A thread that is interrupted while `is_limited`."""

    is_limited = False

    def run(self, count: int) -> None:
        number, self.is_limited = 0, True
        while number < count:
            with suppress(TimeLimitError):
                while number < count:
                    number += 1
                    try:
                        self.calls.call(number)
                    except TimeLimitError:
                        self.calls.interrupted += 1
        self.is_limited = False


def join(others: list[Bystander]) -> dict[str, object]:
    for other in others:
        other.thread.join(max(0.1, other.deadline - time.monotonic()))
    return {
        "failures": [failure for other in others for failure in other.failures],
        "wrong_of_others": [name for other in others for name in other.calls.wrong],
        "published_by_others": [name for other in others for name in other.calls.published],
        "hanging": [other.name for other in others if other.thread.is_alive()],
    }


def handler(publisher: BlockingPublisher, count: int) -> dict[str, object]:
    """Publish in a signal handler too, as a worker does that is being stopped."""
    answers: list[bool] = []

    def on_alarm(_signal: int, _frame: object) -> None:
        answers.append(publisher.publish(CHANNEL, "n", f"handler-{len(answers)}"))

    calls = Calls(publisher, "main")
    signal.signal(signal.SIGALRM, on_alarm)
    for number in range(count):
        with alarm(_random.uniform(1e-6, 2e-4)):
            calls.call(number)
    return calls.report(answers=answers)


def forks(publisher: BlockingPublisher, count: int) -> dict[str, object]:
    """Make the first publish of each of many children in eight threads together."""
    publisher.publish(CHANNEL, "n", "parent")
    statuses: list[int] = []
    for number in range(count):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_CHILD_SECONDS)
            os._exit(publish_together(publisher, f"child-{number}"))
        statuses.append(os.waitpid(child, 0)[1])
    return {"statuses": statuses}


def publish_together(publisher: BlockingPublisher, name: str) -> int:
    sys.setswitchinterval(1e-6)
    answers: list[bool] = []
    barrier = threading.Barrier(THREADS)

    def publish(number: int) -> None:
        barrier.wait()
        answers.append(publisher.publish(CHANNEL, "n", f"{name}-{number}"))

    started = [threading.Thread(target=publish, args=(number,)) for number in range(THREADS)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return 0 if answers == [True] * THREADS else 1


SCENES: dict[str, Callable[[BlockingPublisher, int], dict[str, Any]]] = {
    scene.__name__: scene
    for scene in (signals, signals_while_others_publish, threads, handler, forks)
}


if __name__ == "__main__":
    _, scene, url, count = sys.argv
    with BlockingPublisher(url) as publisher, redis.Redis.from_url(url) as client:
        report = SCENES[scene](publisher, int(count))
        report["connections"] = len(client.client_list()) - 1
        sys.stdout.write(json.dumps(report))
