"""The official SDK of MCP, client and server, of the installed major version.

The same calls have the same results, progress and notifications with the middleware and without it.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
import pytest

from tests.support import needs
from tests.support.servers import Server, serving

APP = "tests.e2e.clients.mcp_app:app"

Arms = tuple[Server, Server]


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arms]:
    """Run the servers with the middleware and without it."""
    needs.module("mcp")
    directories = tmp_path_factory.mktemp("with"), tmp_path_factory.mktemp("without")
    name, heartbeats, off = "uvicorn-httptools", {"SSE_HEARTBEAT_INTERVAL": "0.2"}, "SSE_ENABLED"
    with (
        serving(name, APP, directories[0], heartbeats) as with_us,
        serving(name, APP, directories[1], {off: "0"}) as without,
    ):
        yield with_us, without


@dataclass
class Outcome:
    """All messages that a client has received from the server."""

    results: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, list[Any]] = field(default_factory=dict)
    messages: list[Any] = field(default_factory=list)
    logs: list[Any] = field(default_factory=list)

    async def take_message(self, message: Any) -> None:
        if isinstance(message, Exception):
            self.messages.append(repr(message))
            return
        message = getattr(message, "root", message)  # as version 1 wraps it
        text = message.model_dump_json(by_alias=True, exclude_none=True)
        # The client counts these ids through the whole process, so both arms share the numbers.
        self.messages.append(json.loads(re.sub(r'"listen-\d+"', '"listen"', text)))

    async def take_log(self, message: Any) -> None:
        self.logs.append((message.level, message.data))

    async def call(self, session: Any, name: str, **arguments: Any) -> None:
        """Call a tool, and keep its progress and its result."""
        progress = self.progress.setdefault(name, [])

        async def take_progress(*report: Any) -> None:
            progress.append(report)

        try:
            result = await session.call_tool(name, arguments, progress_callback=take_progress)
        except Exception as exc:  # noqa: BLE001 - an exception of a client is its outcome
            self.results[name] = repr(exc)
        else:
            self.results[name] = result.model_dump(mode="json", by_alias=True, exclude_none=True)


@asynccontextmanager
async def connected(url: str, outcome: Outcome) -> AsyncIterator[Any]:
    """Open a session by the transport that the url is for."""
    if url.endswith("/sse"):
        transport = needs.module("mcp.client.sse").sse_client(url)
    else:
        transport = needs.module("mcp.client.streamable_http").streamable_http_client(url)
    async with (
        transport as (read, write, *_),
        needs.module("mcp").ClientSession(
            read, write, logging_callback=outcome.take_log, message_handler=outcome.take_message
        ) as session,
    ):
        yield session


async def call_tools(session: Any, outcome: Outcome) -> None:
    """Call most tools, some of them at the same time."""
    tools = await session.list_tools()
    outcome.results["tools"] = [tool.name for tool in tools.tools]
    await outcome.call(session, "count", steps=2)
    await outcome.call(session, "announce")
    calls = [outcome.call(session, name) for name in ("say_nothing", "fail", "unknown")]
    await asyncio.gather(*calls)


async def use(url: str) -> Outcome:
    """Use a server with the handshake that both versions know."""
    outcome = Outcome()
    async with connected(url, outcome) as session:
        initialized = await session.initialize()
        outcome.results["initialize"] = initialized.model_dump(mode="json", by_alias=True)
        await call_tools(session, outcome)
        if "/stored/" in url:
            await outcome.call(session, "interrupt")
            await outcome.call(session, "reconnect")
            await call_and_resume(session, outcome)
    return outcome


async def call_and_resume(session: Any, outcome: Outcome) -> None:
    """Call a tool, then read its stream again from the event after the first one."""
    types: Any = needs.module("mcp.types")
    metadata = needs.module("mcp.shared.message").ClientMessageMetadata
    params = types.CallToolRequestParams(name="count", arguments={"steps": 2})
    request = types.CallToolRequest(method="tools/call", params=params)
    if hasattr(types.ClientRequest, "model_fields"):
        request = types.ClientRequest(request)  # as version 1 wraps it
    tokens: list[str] = []

    async def take_token(token: str) -> None:
        tokens.append(token)

    async def call(hint: Any) -> Any:
        result = await session.send_request(request, types.CallToolResult, metadata=hint)
        return result.model_dump(mode="json", by_alias=True, exclude_none=True)

    outcome.results["called"] = await call(metadata(on_resumption_token_update=take_token))
    outcome.results["tokens"] = len(tokens)
    outcome.results["resumed"] = await call(metadata(resumption_token=tokens[0]))


async def use_without_handshake(url: str) -> Outcome:
    """Use a server without a handshake, as version 2 does on both sides."""
    outcome = Outcome()
    client = needs.module("mcp").Client(
        url,
        logging_callback=outcome.take_log,
        message_handler=outcome.take_message,
        log_level="info",
    )
    async with client, client.listen(tools_list_changed=True) as changes:

        async def take_change() -> None:
            async for change in changes:
                outcome.messages.append(repr(change))

        taking = asyncio.create_task(take_change())
        await call_tools(client, outcome)
        taking.cancel()
    return outcome


async def meet_refusal(url: str) -> Outcome:
    """Request a session at a path without a server."""
    outcome = Outcome()
    try:
        async with connected(url, outcome) as session:
            await session.initialize()
    except Exception as exc:  # noqa: BLE001 - an exception of a client is its outcome
        outcome.results["initialize"] = repr(exc)
    return outcome


USES = {
    "/stored/mcp": use,
    "/plain/mcp": use,
    "/old/sse": use,
    "/modern/mcp": use_without_handshake,
    "/absent/mcp": meet_refusal,
}
"""The uses, by the path of the server."""


@pytest.fixture(scope="module")
def started(arms: Arms) -> Iterator[dict[str, list[Future[Outcome]]]]:
    """Run all at the same time, so that they take as long as the longest one."""

    def run(server: Server, path: str) -> Outcome:
        async def run_in_time() -> Outcome:
            async with asyncio.timeout(100):
                return await USES[path](f"{server.url}{path}")

        return asyncio.run(run_in_time())

    with ThreadPoolExecutor(2 * len(USES)) as pool:
        yield {
            path: [pool.submit(run, server, path) for server in arms]
            for path in USES
            if path != "/modern/mcp" or has_version_2()
        }


def has_version_2() -> bool:
    return hasattr(needs.module("mcp"), "Client")


Started = dict[str, list[Future[Outcome]]]


def outcomes(started: Started, path: str) -> tuple[Outcome, Outcome]:
    """Return the sessions of a use with the middleware and without it."""
    if path not in started:
        pytest.skip("this needs version 2")
    with_us, without = (future.result() for future in started[path])
    return with_us, without


def sent(server: Server, path: str) -> list[str]:
    """Return the bytes of all responses on a path, each as the Latin-1 character it is."""
    _, group, name = path.split("/")
    responses: dict[str, list[str]] = httpx.get(f"{server.url}/sent/{group}", timeout=60).json()
    return responses[name]


@pytest.mark.parametrize("path", USES)
def test_a_session_is_the_same_as_without_us(arms: Arms, started: Started, path: str) -> None:
    with_us, without = outcomes(started, path)
    bytes_with, bytes_without = (sent(server, path) for server in arms)
    assert with_us == without, f"{with_us}\nis not\n{without}\nand was sent as\n{bytes_with}"
    assert len(bytes_with) == len(bytes_without)


@pytest.mark.parametrize("path", [path for path in USES if path != "/absent/mcp"])
def test_the_streams_of_a_session_have_heartbeats_and_no_control_events(
    arms: Arms, started: Started, path: str
) -> None:
    outcomes(started, path)
    with_us, without = ("".join(sent(server, path)) for server in arms)
    assert with_us.count(": heartbeat") >= 6
    assert "event: heartbeat" not in with_us
    assert "heartbeat" not in without


@pytest.mark.parametrize("path", [path for path in USES if path != "/absent/mcp"])
def test_a_session_receives_results_progress_and_notifications(started: Started, path: str) -> None:
    outcome, _ = outcomes(started, path)
    assert outcome.results["count"]["content"] == [{"type": "text", "text": "counted to 2"}]
    assert outcome.results["say_nothing"]["content"] == [{"type": "text", "text": "a late answer"}]
    assert outcome.results["fail"]["isError"]
    assert [progress for progress, *_ in outcome.progress["count"]] == [1, 2]
    assert outcome.logs[:2] == [("info", "at 1"), ("info", "at 2")]
    assert "ToolsListChanged" in str(outcome.messages) or "tools/list_changed" in str(
        outcome.messages
    )


def test_a_session_resumes_by_the_ids_of_its_own_server(started: Started) -> None:
    outcome, _ = outcomes(started, "/stored/mcp")
    reports = [message for _, _, message in outcome.progress["interrupt"]]
    assert reports == ["before", "meanwhile", "after"]
    methods = [message.get("method", "") for message in outcome.messages]
    assert methods.count("notifications/resources/list_changed") == 1
    assert methods.count("notifications/prompts/list_changed") == 1
    assert outcome.results["tokens"] >= 3
    assert outcome.results["resumed"] == outcome.results["called"]


def test_a_session_that_is_refused_fails(started: Started) -> None:
    outcome, _ = outcomes(started, "/absent/mcp")
    assert "initialize" in outcome.results
