"""A worker that answers sessions: `python -m tests.e2e.redis.session_worker`."""

import asyncio
import sys
from typing import Any

from sse_middleware.channels import close_channels, publish_event, subscribe

ANSWER = "Paris, and it is sunny ☀."


async def work(session_id: str, user_query: str, model_alias: str) -> None:
    if model_alias != "without_ack":
        await publish_event(session_id, "worker_ack", {})
    for char in f"I think: {user_query}":
        await publish_event(session_id, "AgentThoughtStream", {"char": char})
    await publish_event(session_id, "AgentToolCallStart", {"tool_name": "weather"})
    if model_alias == "broken":
        await publish_event(session_id, "error", {"error": "The model is broken."})
        return
    for char in ANSWER:
        await publish_event(session_id, "FinalAnswerStream", {"char": char})
    await publish_event(session_id, "FinalAnswerStreamEnd", {})


async def main() -> None:
    tasks = set[asyncio.Task[None]]()
    sys.stdout.write("The worker is ready\n")
    async for event in subscribe("jobs", ack_timeout=None):
        job: dict[str, Any] = event.json()
        task = asyncio.create_task(work(**job))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await close_channels()


if __name__ == "__main__":
    asyncio.run(main())
