"""Workers of Celery and RQ, which fork, publish as documented."""

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import redis

from sse_middleware.channels import close_channels, subscribe
from tests.support import needs
from tests.support.redis_server import RedisServer, need_redis_server
from tests.support.servers import running_process

ROOT = Path(__file__).parents[3]
PATIENCE = 90  # seconds, in which two interpreters start
REPORT = [
    ("worker_ack", {}),
    ("page", {"number": 0}),
    ("page", {"number": 1}),
    ("complete", {"reason": "finished"}),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    need_redis_server()
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def task_of_the_documentation(url: str) -> str:
    text = (ROOT / "docs" / "channels.md").read_text()
    found = re.search(r"^```python\n(from celery import.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1].replace("redis://localhost:6379/0", url)


def worker(
    directory: Path, url: str, *command: str
) -> AbstractContextManager[tuple[subprocess.Popen[bytes], Path]]:
    environ = {"SSE_REDIS_URL": url, "PYTHONPATH": f"{directory}:{ROOT}"}
    return running_process([sys.executable, "-m", *command], directory / "worker.log", environ)


def read(sessions: list[str], url: str) -> list[list[tuple[str, object]]]:
    async def one(session: str) -> list[tuple[str, object]]:
        events = subscribe(session, url=url, ack_timeout=PATIENCE)
        return [(event.event, event.json()) async for event in events]

    async def all_of_them() -> list[list[tuple[str, object]]]:
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.gather(*map(one, sessions))
        finally:
            await close_channels()

    return asyncio.run(all_of_them())


def test_a_task_of_celery_publishes_from_the_processes_that_it_forks(
    server: RedisServer, tmp_path: Path
) -> None:
    needs.module("celery")
    (tmp_path / "reports.py").write_text(task_of_the_documentation(server.url))
    sessions = [secrets.token_urlsafe() for _ in range(8)]
    command = ("celery", "-A", "reports", "worker", "--pool", "prefork", "--concurrency", "3")
    enqueue = (
        "import json, sys, reports\n"
        "for session in json.loads(sys.argv[1]):\n"
        "    for _ in range(2): reports.write_report.delay(session, 2)\n"
    )
    with worker(tmp_path, server.url, *command):
        arguments = [sys.executable, "-c", enqueue, json.dumps(sessions)]
        environ = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        subprocess.run(arguments, check=True, cwd=tmp_path, env=environ, timeout=PATIENCE)
        assert read(sessions, server.url) == [REPORT] * len(sessions)


def test_a_job_of_rq_publishes_from_the_process_that_is_forked_for_it(
    server: RedisServer, tmp_path: Path
) -> None:
    queues = needs.module("rq")
    task = task_of_the_documentation(server.url)
    task = re.sub(r"^(from celery.*|celery = .*|@celery.task)\n", "", task, flags=re.MULTILINE)
    (tmp_path / "jobs.py").write_text(task)
    sessions = [secrets.token_urlsafe() for _ in range(4)]
    with redis.Redis.from_url(server.url) as client:
        queue = queues.Queue(connection=client)
        for session in sessions:
            queue.enqueue("jobs.write_report", session, 2)
        with worker(tmp_path, server.url, "rq.cli", "worker", "--url", server.url):
            assert read(sessions, server.url) == [REPORT] * len(sessions)
