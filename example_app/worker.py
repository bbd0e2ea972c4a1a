"""The agent of `/v1/react/sessions`: `python -m example_app.worker`, in any number of processes.

All workers receive all jobs, and the worker with the first `ack` does the job. Without Redis, the
web process runs a worker itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from example_app.agents import Agents
from example_app.completions.endpoint import create_qwen_client
from example_app.react_agent import END, JOBS, Job
from example_app.search import SearchIndex, load_passages
from sse_middleware import StoreError
from sse_middleware.channels import Publisher, subscribe

if TYPE_CHECKING:
    from example_app.agents import Step

WORD_SECONDS: Final = float(os.environ.get("EXAMPLE_WORD_SECONDS", "0.025"))
_JOBS_AT_ONCE: Final = 1000
_LAST_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 1.0


class Worker:
    """Do jobs, each in a separate task."""

    def __init__(
        self, agents: Agents, publisher: Publisher, word_seconds: float = WORD_SECONDS
    ) -> None:
        """Store the arguments.

        Args:
            agents: answer the questions.
            publisher: publishes the answers.
            word_seconds: the pause after a word.

        """
        self._agents = agents
        self._publisher = publisher
        self._word_seconds = word_seconds
        self._room = asyncio.Semaphore(_JOBS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Take jobs until cancelled; then finish the running ones."""
        try:
            while True:
                await self._take_jobs()
                await asyncio.sleep(_PAUSE_SECONDS)  # the store was unavailable for a long time
        finally:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_LAST_SECONDS)
            for task in self._tasks:
                task.cancel()

    async def _take_jobs(self) -> None:
        async with aclosing(subscribe(JOBS, ack_timeout=None, terminal=("error",))) as events:
            async for event in events:
                if event.event != "job":
                    continue
                with suppress(ValidationError):
                    job = Job.model_validate_json(event.data)
                    if time.time() < job.expires_at:
                        await self._room.acquire()
                        task = asyncio.create_task(self._do(job))
                        self._tasks.add(task)
                        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()

    async def _do(self, job: Job) -> None:
        session = job.session_id
        try:
            if not await self._publisher.ack(session):
                return  # another worker has taken it
            await self._answer(job)
        except StoreError as exc:
            print(f"a session is lost: {exc}", file=sys.stderr)
        except Exception as exc:  # noqa: BLE001 - a browser waits for an end, whatever the error is
            print(f"a job has failed: {type(exc).__name__}", file=sys.stderr)
            with suppress(StoreError):
                await self._publisher.fail(session, "worker_failed", "The agent has failed.")

    async def _answer(self, job: Job) -> None:
        async with aclosing(self._agents.run(job.model_alias, job.user_query)) as steps:
            async for step in steps:
                await self._publish(job, step)
        await self._publisher.publish(job.session_id, END, {})

    async def _publish(self, job: Job, step: Step) -> None:
        """Publish a step; a text by its characters, those of a word together."""
        publish, session = self._publisher.publish, job.session_id
        if step.kind == "tool":
            await publish(session, "AgentToolCallStart", {"tool_name": step.text})
            return
        event = "AgentThoughtStream" if step.kind == "thought" else "FinalAnswerStream"
        await asyncio.gather(*(publish(session, event, {"char": it}) for it in step.text))
        await asyncio.sleep(self._word_seconds)


async def main() -> None:
    """Work until Ctrl-C or SIGTERM."""
    index = await asyncio.to_thread(lambda: SearchIndex(load_passages()))
    agents = Agents(index, create_qwen_client(index, token_delay_seconds=0))
    async with Publisher() as publisher:
        work = asyncio.create_task(Worker(agents, publisher).run())
        for sign in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(sign, work.cancel)
        print("The worker is ready (stop it with Ctrl-C)", flush=True)
        with suppress(asyncio.CancelledError):
            await work


if __name__ == "__main__":
    if not os.environ.get("SSE_REDIS_URL"):
        sys.exit("example_app.worker: set SSE_REDIS_URL; without it the web process works itself")
    asyncio.run(main())
