"""The official SDK of MCP, client and server, of whichever major version is installed.

The same calls give the same results, progress and notifications with us and without us.
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
    """Run the servers with us and without us."""
    needs.module("mcp")
    directories = tmp_path_factory.mktemp("with"), tmp_path_factory.mktemp("without")
    name, heartbeats, off = "uvicorn-httptools", {"SSE_HEARTBEAT_INTERVAL": "0.2"}, "SSE_ENABLED"
    with (
        serving(name, APP, directories[0], heartbeats) as with_us,
        serving(name, APP, directories[1], {off: "0"}) as without,
    ):
        yield with_us, without


@dataclass
class Told:
    """All that the server has told a client."""

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
        """Call a tool, and keep what it reports and how it answers."""
        progress = self.progress.setdefault(name, [])

        async def take_progress(*report: Any) -> None:
            progress.append(report)

        try:
            result = await session.call_tool(name, arguments, progress_callback=take_progress)
        except Exception as exc:  # noqa: BLE001 - whatever a client raises is its outcome
            self.results[name] = repr(exc)
        else:
            self.results[name] = result.model_dump(mode="json", by_alias=True, exclude_none=True)


@asynccontextmanager
async def connected(url: str, told: Told) -> AsyncIterator[Any]:
    """Open a session by the transport that the url is for."""
    if url.endswith("/sse"):
        transport = needs.module("mcp.client.sse").sse_client(url)
    else:
        transport = needs.module("mcp.client.streamable_http").streamable_http_client(url)
    async with (
        transport as (read, write, *_),
        needs.module("mcp").ClientSession(
            read, write, logging_callback=told.take_log, message_handler=told.take_message
        ) as session,
    ):
        yield session


async def call_tools(session: Any, told: Told) -> None:
    """Call most tools, some of them at the same time."""
    tools = await session.list_tools()
    told.results["tools"] = [tool.name for tool in tools.tools]
    await told.call(session, "count", steps=2)
    await told.call(session, "announce")
    calls = [told.call(session, name) for name in ("say_nothing", "fail", "unknown")]
    await asyncio.gather(*calls)


async def use(url: str) -> Told:
    """Use a server by the handshake that both versions know."""
    told = Told()
    async with connected(url, told) as session:
        initialized = await session.initialize()
        told.results["initialize"] = initialized.model_dump(mode="json", by_alias=True)
        await call_tools(session, told)
        if "/stored/" in url:
            await told.call(session, "interrupt")
            await told.call(session, "reconnect")
            await call_and_resume(session, told)
    return told


async def call_and_resume(session: Any, told: Told) -> None:
    """Call a tool, then read its stream again from the event behind the first one."""
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

    told.results["called"] = await call(metadata(on_resumption_token_update=take_token))
    told.results["tokens"] = len(tokens)
    told.results["resumed"] = await call(metadata(resumption_token=tokens[0]))


async def use_without_handshake(url: str) -> Told:
    """Use a server as version 2 does where both sides are of its age."""
    told = Told()
    client = needs.module("mcp").Client(
        url, logging_callback=told.take_log, message_handler=told.take_message, log_level="info"
    )
    async with client, client.listen(tools_list_changed=True) as changes:

        async def take_change() -> None:
            async for change in changes:
                told.messages.append(repr(change))

        taking = asyncio.create_task(take_change())
        await call_tools(client, told)
        taking.cancel()
    return told


async def meet_refusal(url: str) -> Told:
    """Ask for a session where there is no server."""
    told = Told()
    try:
        async with connected(url, told) as session:
            await session.initialize()
    except Exception as exc:  # noqa: BLE001 - whatever a client raises is its outcome
        told.results["initialize"] = repr(exc)
    return told


USES = {
    "/stored/mcp": use,
    "/plain/mcp": use,
    "/old/sse": use,
    "/modern/mcp": use_without_handshake,
    "/absent/mcp": meet_refusal,
}
"""What is tried, by the path of the server; the first part of it is the name of the trial."""


@pytest.fixture(scope="module")
def started(arms: Arms) -> Iterator[dict[str, list[Future[Told]]]]:
    """Run all at the same time, so that all take as long as the longest."""

    def run(server: Server, path: str) -> Told:
        async def run_in_time() -> Told:
            async with asyncio.timeout(60):
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


Started = dict[str, list[Future[Told]]]


def outcomes(started: Started, path: str) -> tuple[Told, Told]:
    """Return what a client was told with us and without us."""
    if path not in started:
        pytest.skip("this is of version 2")
    with_us, without = (future.result() for future in started[path])
    return with_us, without


def sent(server: Server, path: str) -> list[str]:
    """Return the bytes of all responses on a path, each as the Latin-1 character it is."""
    _, group, name = path.split("/")
    told: dict[str, list[str]] = httpx.get(f"{server.url}/sent/{group}", timeout=20).json()
    return told[name]


@pytest.mark.parametrize("path", USES)
def test_a_session_is_the_same_as_without_us(arms: Arms, started: Started, path: str) -> None:
    with_us, without = outcomes(started, path)
    bytes_with, bytes_without = (sent(server, path) for server in arms)
    assert with_us == without, f"{with_us}\nis not\n{without}\nand was sent as\n{bytes_with}"
    assert len(bytes_with) == len(bytes_without)


@pytest.mark.parametrize("path", [path for path in USES if path != "/absent/mcp"])
def test_the_streams_of_a_session_get_heartbeats_and_no_events_of_ours(
    arms: Arms, started: Started, path: str
) -> None:
    outcomes(started, path)
    with_us, without = ("".join(sent(server, path)) for server in arms)
    assert with_us.count(": heartbeat") >= 6
    assert "event: heartbeat" not in with_us
    assert "heartbeat" not in without


@pytest.mark.parametrize("path", [path for path in USES if path != "/absent/mcp"])
def test_a_session_gets_results_progress_and_notifications(started: Started, path: str) -> None:
    told, _ = outcomes(started, path)
    assert told.results["count"]["content"] == [{"type": "text", "text": "counted to 2"}]
    assert told.results["say_nothing"]["content"] == [{"type": "text", "text": "a late answer"}]
    assert told.results["fail"]["isError"]
    assert [progress for progress, *_ in told.progress["count"]] == [1, 2]
    assert told.logs[:2] == [("info", "at 1"), ("info", "at 2")]
    assert "ToolsListChanged" in str(told.messages) or "tools/list_changed" in str(told.messages)


def test_a_session_resumes_by_the_ids_of_its_own_server(started: Started) -> None:
    told, _ = outcomes(started, "/stored/mcp")
    reports = [message for _, _, message in told.progress["interrupt"]]
    assert reports == ["before", "meanwhile", "after"]
    told_of = [message.get("method", "") for message in told.messages]
    assert told_of.count("notifications/resources/list_changed") == 1
    assert told_of.count("notifications/prompts/list_changed") == 1
    assert told.results["tokens"] >= 3
    assert told.results["resumed"] == told.results["called"]


def test_a_session_that_is_refused_says_so(started: Started) -> None:
    told, _ = outcomes(started, "/absent/mcp")
    assert "initialize" in told.results
