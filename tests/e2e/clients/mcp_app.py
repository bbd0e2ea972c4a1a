"""MCP servers with the middleware, by the installed major version of the official SDK.

`/stored/mcp` keeps its events, so that its clients can resume; `/plain/mcp` and `/modern/mcp` do
not; `/old/sse` uses the older transport. The tools are slow enough for heartbeats between their
events.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount

from sse_middleware import SSEMiddleware
from tests.e2e.clients.recording_app import Recording

PAUSE_SECONDS = 0.5
RETRY_MS = 100

streamable_http: Any = importlib.import_module("mcp.server.streamable_http")
try:
    servers: Any = importlib.import_module("mcp.server.mcpserver")
    Server: Any = servers.MCPServer
    IS_FIRST = False
except ModuleNotFoundError:
    servers = importlib.import_module("mcp.server.fastmcp")
    Server = servers.FastMCP
    IS_FIRST = True


class MemoryEventStore:
    """Keep all events by the interface `EventStore` of the SDK."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(
        self, last_event_id: str, send_callback: Callable[[Any], Awaitable[None]]
    ) -> str | None:
        after = int(last_event_id)
        stream_id, _ = self.events[after - 1]
        for number, (stream, message) in enumerate(self.events[after:], after + 1):
            if stream == stream_id and message is not None:
                await send_callback(streamable_http.EventMessage(message, str(number)))
        return stream_id


async def count(steps: int, ctx: Any) -> str:
    """Report each step."""
    for step in range(steps):
        await asyncio.sleep(PAUSE_SECONDS)
        await ctx.report_progress(step + 1, steps, f"ünïcödé 🚀\nstep {step + 1}")
        await ctx.info(f"at {step + 1}")
    await asyncio.sleep(PAUSE_SECONDS)
    return f"counted to {steps}"


async def say_nothing() -> str:
    """Return late."""
    await asyncio.sleep(2 * PAUSE_SECONDS)
    return "a late answer"


async def announce(ctx: Any) -> str:
    """Notify on the standalone stream."""
    for _ in range(2):
        await ctx.session.send_tool_list_changed()
        if not IS_FIRST:
            await ctx.notify_tools_changed()  # for subscribers of version 2
        await asyncio.sleep(PAUSE_SECONDS)
    return "announced"


async def reconnect(ctx: Any) -> str:
    """Cut the standalone stream, and notify on it while the client is disconnected."""
    await ctx.close_standalone_sse_stream()
    await ctx.session.send_resource_list_changed()
    # The client reconnects after a second. The SDK may lose messages at that moment, with the
    # middleware and without it, since it replays before it subscribes.
    await asyncio.sleep(8 * PAUSE_SECONDS)
    await ctx.session.send_prompt_list_changed()
    await asyncio.sleep(PAUSE_SECONDS)
    return "reconnected"


async def interrupt(ctx: Any) -> str:
    """Cut the stream of this call; the client resumes it."""
    await ctx.report_progress(1, 3, "before")
    await asyncio.sleep(PAUSE_SECONDS)
    await ctx.close_sse_stream()
    await ctx.report_progress(2, 3, "meanwhile")
    await asyncio.sleep(2 * PAUSE_SECONDS)
    await ctx.report_progress(3, 3, "after")
    await asyncio.sleep(PAUSE_SECONDS)
    return "interrupted"


async def fail() -> str:
    """Fail late."""
    await asyncio.sleep(PAUSE_SECONDS)
    raise ValueError("swordfish")


def server(**arguments: Any) -> Any:
    made = Server("test", **arguments)
    for tool in (count, say_nothing, announce, reconnect, interrupt, fail):
        if "ctx" in tool.__annotations__:
            tool.__annotations__["ctx"] = servers.Context
        made.tool()(tool)
    return made


def streamable_app(**arguments: Any) -> Starlette:
    arguments["retry_interval"] = RETRY_MS
    app: Starlette = (
        server(**arguments).streamable_http_app()
        if IS_FIRST
        else server().streamable_http_app(**arguments)
    )
    return app


stored = streamable_app(event_store=MemoryEventStore())
plain = streamable_app()
modern = streamable_app()
old = server().sse_app()


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Start the mounted apps too; Starlette does not."""
    async with AsyncExitStack() as stack:
        for mounted in (stored, plain, modern):
            await stack.enter_async_context(mounted.router.lifespan_context(mounted))
        yield


_app = Starlette(
    routes=[
        Mount("/stored", stored),
        Mount("/plain", plain),
        Mount("/modern", modern),
        Mount("/old", old),
    ],
    lifespan=lifespan,
)
_app.add_middleware(SSEMiddleware, mark="*")
app = Recording(_app)
