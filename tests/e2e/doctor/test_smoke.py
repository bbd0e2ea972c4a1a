"""The command `smoke` beside a real server, once as a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sse_middleware.__main__ import main
from tests.support.servers import serving
from tests.support.waiting import HANG_SECONDS

MANY = ("--count", "20", "--concurrency", "5", "--json")


def test_a_nightly_job_measures_records_and_fails_at_a_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = str(tmp_path / "results.jsonl")

    def smoke(url: str, *arguments: str) -> tuple[int, dict[str, Any]]:
        status = main(["smoke", url, *MANY, "--results", results, *arguments])
        return status, json.loads(capsys.readouterr().out)

    with serving("uvicorn-httptools", "tests.e2e.servers.app:app", tmp_path) as server:
        url = f"{server.url}/count?n=3&pause=0.1"
        status, good = smoke(url, "--max-gap", "30", "--max-first-event", "30")
        assert (status, good["errors"]) == (0, {})
        assert min(good["gap"]) > 0.05
        status, slow = smoke(url, "--max-gap", "0.05")
        assert (status, len(slow["exceeded"])) == (1, 1)
        status, failing = smoke(f"{url}&boom=1")
        assert (status, failing["errors"]) == (1, {"cut": 20})
        status, missing = smoke(f"{server.url}/missing")
        assert (status, missing["errors"]) == (1, {"status 404": 20})
    assert main(["smoke", "--rollup", results]) == 0
    table = capsys.readouterr().out
    assert "| **all** | 3 | 2 | 60 | 20 |" in table
    assert table.count("\n## ") == 2


def test_the_command_is_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sse_middleware", "smoke", *MANY]
    with serving("uvicorn-httptools", "tests.e2e.servers.app:app", tmp_path) as server:
        done = subprocess.run(
            [*command, f"{server.url}/count"],
            check=True,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
        )
    assert json.loads(done.stdout)["count"] == 20
    assert done.stderr.count("… ") == 20
