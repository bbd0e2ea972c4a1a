"""Reverse proxies with the configurations of docs/deployment.md."""

import re
from collections.abc import Callable
from pathlib import Path

from tests.support.needs import REPOSITORY, program

_DOCUMENT = REPOSITORY / "docs" / "deployment.md"


def configured(proxy: str, ports: dict[str, int], *, idle_seconds: int = 60) -> str:
    """Return the configuration in docs/deployment.md, with other ports and another timeout."""
    found = re.search(rf"^```{proxy}\n(.*?)^```", _DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    text = re.sub(r"\b60s\b", f"{idle_seconds}s", found[1])
    for documented, port in ports.items():
        assert f"127.0.0.1:{documented}" in text
        text = text.replace(f"127.0.0.1:{documented}", f"127.0.0.1:{port}")
    return text


def nginx(directory: Path, text: str) -> list[str]:
    path = directory / "nginx.conf"
    temporary = "".join(
        f"{name}_temp_path {directory}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path.write_text(
        f"daemon off;\nmaster_process off;\npid {directory}/pid;\nerror_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{text}}}\n"
    )
    return [program("nginx"), "-c", str(path), "-p", str(directory)]


def haproxy(directory: Path, text: str) -> list[str]:
    path = directory / "haproxy.cfg"
    path.write_text(text)
    return [program("haproxy"), "-db", "-f", str(path)]


PROXIES: dict[str, Callable[[Path, str], list[str]]] = {"nginx": nginx, "haproxy": haproxy}
