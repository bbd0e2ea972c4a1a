"""The manifests of docs/kubernetes.md: their times fit together, and their hook drains a server."""

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sse_middleware import Options
from tests.e2e.drain.drained_stream import opened
from tests.support import needs
from tests.support.ports import free_port
from tests.support.servers import running_process, wait_until_listening
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio

PAGE = (needs.REPOSITORY / "docs" / "kubernetes.md").read_text()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def manifests() -> dict[str, Any]:
    """Return the manifests by their kinds."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return {found["kind"]: found for found in needs.module("yaml").safe_load_all(text)}


def pod_of(manifests: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifests["Deployment"]["spec"]["template"]["spec"]
    return found


def container_of(manifests: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod_of(manifests)["containers"]
    return dict(found)


def environ_of(manifests: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container_of(manifests)["env"]}


def hook_of(manifests: dict[str, Any]) -> list[str]:
    command: list[str] = container_of(manifests)["lifecycle"]["preStop"]["exec"]["command"]
    return command


def test_the_grace_period_is_longer_than_the_pause_and_the_drain(manifests: dict[str, Any]) -> None:
    (pause,) = re.findall(r"sleep\((\d+)\)", hook_of(manifests)[-1])
    drain = Options.from_environ(environ_of(manifests)).drain_seconds
    grace = pod_of(manifests)["terminationGracePeriodSeconds"]
    assert grace == int(pause) + drain + 5
    assert f"({pause} + {drain:g})" in PAGE
    assert f"answer of up to {drain:g} seconds" in PAGE


def test_the_variables_are_settings_and_the_paths_and_ports_match(
    manifests: dict[str, Any],
) -> None:
    options = Options.from_environ(environ_of(manifests))
    container = container_of(manifests)
    probe = container["readinessProbe"]["httpGet"]
    assert probe == {"path": options.ready_path, "port": "http"}
    assert "livenessProbe" not in container
    (port,) = container["ports"]
    assert str(port["containerPort"]) == container["command"][-1]
    address = f"http://127.0.0.1:{port['containerPort']}{options.drain_path}"
    assert f'urlopen("{address}")' in hook_of(manifests)[-1]
    (service_port,) = manifests["Service"]["spec"]["ports"]
    assert service_port["targetPort"] == port["name"]
    template = manifests["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert manifests["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    (rule,) = manifests["Ingress"]["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    backend = path["backend"]["service"]
    assert backend["name"] == manifests["Service"]["metadata"]["name"]
    assert backend["port"]["name"] == service_port["name"]


def test_the_timeout_of_the_ingress_is_above_the_heartbeat(manifests: dict[str, Any]) -> None:
    annotations = manifests["Ingress"]["metadata"]["annotations"]
    timeout = annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]
    heartbeat = Options.from_environ(environ_of(manifests)).heartbeat_interval
    assert heartbeat is not None
    assert float(timeout) > 3 * heartbeat


async def test_the_hook_drains_the_server_which_then_ends_at_once(
    manifests: dict[str, Any], tmp_path: Path
) -> None:
    port, drain = free_port(), 1.0
    program, app, *arguments = container_of(manifests)["command"]
    assert app == "app:app"
    arguments = [argument.replace("8000", str(port)) for argument in arguments]
    command = [sys.executable, "-m", program, "tests.e2e.drain.app:app", *arguments]
    environ = environ_of(manifests)
    environ |= {"SSE_DRAIN_SECONDS": str(drain), "SSE_REDIS_URL": "", "SSE_MARK": "/feed"}
    python, *hook = hook_of(manifests)
    assert python == "python"
    hook = [re.sub(r"sleep\(\d+\)", "sleep(0)", part).replace("8000", str(port)) for part in hook]
    with running_process(command, tmp_path / "server.log", environ) as (process, log):
        wait_until_listening(port, process, log)
        stream = await opened(port, "/feed")
        reading = asyncio.ensure_future(stream.until_end())
        await until(lambda: bool(stream.numbers), "the stream has no event")
        await asyncio.to_thread(
            subprocess.run, [sys.executable, *hook], check=True, timeout=HANG_SECONDS
        )
        await asyncio.wait_for(reading, HANG_SECONDS)
        assert (stream.whole, stream.reason) == (True, "shutdown")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, HANG_SECONDS)
        assert process.returncode == -signal.SIGTERM
