"""Runs of one client on a server: the events that it dispatches in each scenario, and the end."""

import asyncio
import json
import os
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx

from tests.support import needs
from tests.support.waiting import HANG_SECONDS


class Outcome(NamedTuple):
    """The events that a client has dispatched in one scenario."""

    events: list[Any]
    end: str


Outcomes = dict[str, Outcome]
"""Outcomes by scenario."""

Run = Callable[[str, Sequence[str]], Outcomes]
"""Run a client on the paths of a server below a URL, in all scenarios at once."""

Dispatch = Callable[[Any], None]


def by_node(script: str, accept: str = "", **variables: str) -> Run:
    """Return the run of a client for node, with variables in its environment."""

    def run(base: str, scenarios: Sequence[str]) -> Outcomes:
        command = [needs.node(), str(needs.NODE_CLIENTS / script), base, *scenarios]
        environ = {**os.environ, "ACCEPT": accept, **variables}
        done = subprocess.run(
            command, capture_output=True, timeout=HANG_SECONDS, env=environ, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return {line["scenario"]: Outcome(line["events"], line["end"]) for line in lines}

    return run


def in_threads(read: Callable[[str, str, Dispatch], str]) -> Run:
    """Return the run of a client that blocks."""

    def run(base: str, scenarios: Sequence[str]) -> Outcomes:
        def one(scenario: str) -> Outcome:
            events: list[Any] = []
            try:
                end = read(base, scenario, events.append)
            except Exception as exc:  # noqa: BLE001 - an exception of a client is its outcome
                end = _text(exc)
            return Outcome(events, end)

        with ThreadPoolExecutor(len(scenarios)) as pool:
            return dict(zip(scenarios, pool.map(one, scenarios), strict=True))

    return run


def in_tasks(read: Callable[[str, str, Dispatch], Awaitable[str]]) -> Run:
    """Return the run of a client that awaits."""

    def run(base: str, scenarios: Sequence[str]) -> Outcomes:
        async def one(scenario: str) -> Outcome:
            events: list[Any] = []
            try:
                end = await read(base, scenario, events.append)
            except Exception as exc:  # noqa: BLE001 - an exception of a client is its outcome
                end = _text(exc)
            return Outcome(events, end)

        async def all_of_them() -> list[Outcome]:
            return await asyncio.gather(*map(one, scenarios))

        return dict(zip(scenarios, asyncio.run(all_of_them()), strict=True))

    return run


def _text(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"


# Clients for Python


def httpx_sse(base: str, scenario: str, dispatch: Dispatch) -> str:
    connect = needs.module("httpx_sse").connect_sse
    url = f"{base}/{scenario}/stream"
    with httpx.Client(timeout=HANG_SECONDS) as client, connect(client, "GET", url) as source:
        for event in source.iter_sse():
            dispatch([event.event, event.data, event.id, event.retry])
        return f"ended {source.response.status_code}"


async def httpx_sse_async(base: str, scenario: str, dispatch: Dispatch) -> str:
    connect = needs.module("httpx_sse").aconnect_sse
    url = f"{base}/{scenario}/stream"
    async with (
        httpx.AsyncClient(timeout=HANG_SECONDS) as client,
        connect(client, "POST", url) as source,
    ):
        async for event in source.aiter_sse():
            dispatch([event.event, event.data, event.id, event.retry])
        return f"ended {source.response.status_code}"


def lines(**headers: str) -> Callable[[str, str, Dispatch], str]:
    """Return a naive parser, which works line by line."""

    def read(base: str, scenario: str, dispatch: Dispatch) -> str:
        url = f"{base}/{scenario}/stream"
        with httpx.stream("GET", url, headers=headers, timeout=HANG_SECONDS) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    dispatch(line.removeprefix("data: "))
            return f"ended {response.status_code}"

    return read


def openai(base: str, model: str, dispatch: Dispatch) -> str:
    with needs.module("openai").OpenAI(**_openai_arguments(f"{base}/{model}")) as client:
        for chunk in client.chat.completions.create(stream=True, model=model, messages=MESSAGES):
            dispatch(chunk.model_dump(mode="json"))
    return "ended"


async def openai_async(base: str, model: str, dispatch: Dispatch) -> str:
    async with needs.module("openai").AsyncOpenAI(**_openai_arguments(f"{base}/{model}")) as client:
        create = client.chat.completions.create
        async for chunk in await create(stream=True, model=model, messages=MESSAGES):
            dispatch(chunk.model_dump(mode="json"))
    return "ended"


MESSAGES = [{"role": "user", "content": "?"}]


def _openai_arguments(base: str) -> dict[str, Any]:
    return {"api_key": "none", "base_url": f"{base}/v1", "max_retries": 0}
