"""The doctor reads streams that real layers compress with Brotli and Zstandard, or says why not."""

from collections.abc import Iterator

import brotli
import pytest
from backports import zstd

from sse_middleware.doctor import codings
from sse_middleware.doctor.client import Target
from sse_middleware.doctor.codings import accepted, decoder_of
from sse_middleware.doctor.diagnosis import Diagnosis, Plan, diagnose
from sse_middleware.doctor.visit import MAX_BODY_BYTES, Chunk, read_body
from tests.e2e.doctor.app import COUNT
from tests.support.servers import serving
from tests.support.waiting import HANG_SECONDS

BYTES = b"data: 1\n\n: ping\n\ndata: 2\n\n"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("codings")
    with serving("uvicorn-h11", "tests.e2e.doctor.compressing_app:app", directory) as server:
        yield server.url


def diagnosed(url: str, headers: dict[str, str] | None = None) -> Diagnosis:
    target = Target(url=url, headers=headers or {})
    return diagnose(target, Plan(seconds=HANG_SECONDS, resumes=False), lambda _: None)


def codes(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings} - {"six_connections"}


def detail(diagnosis: Diagnosis, code: str) -> str:
    return next(finding.detail for finding in diagnosis.findings if finding.code == code)


@pytest.mark.parametrize(("path", "title"), [("br", "br (Brotli)"), ("zstd", "zstd (Zstandard)")])
def test_a_compressed_stream_is_read(url: str, path: str, title: str) -> None:
    diagnosis = diagnosed(f"{url}/{path}/marked")
    assert codes(diagnosis) == {"compressed"}
    assert title in detail(diagnosis, "compressed")
    assert len(diagnosis.visit.app_events) == COUNT
    assert "complete" in diagnosis.visit.control_events


def test_a_coding_that_is_not_known_is_said_to_be_so(url: str) -> None:
    diagnosis = diagnosed(f"{url}/other/unmarked")
    assert codes(diagnosis) == {"compressed", "unreadable", "unmarked"}
    assert detail(diagnosis, "unreadable").endswith("x-own. The coding is not known.")


def test_data_of_another_coding_is_said_to_be_so(url: str) -> None:
    diagnosis = diagnosed(f"{url}/wrong/unmarked")
    assert "The data is not valid" in detail(diagnosis, "unreadable")


@pytest.mark.parametrize(
    ("path", "package"), [("br", "install brotli 1.2 or later"), ("zstd", "install backports.zstd")]
)
def test_a_coding_whose_package_is_missing_is_named_with_the_package(
    url: str, path: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codings, "coding_module", lambda _: None)
    assert accepted() == "gzip, deflate"
    diagnosis = diagnosed(f"{url}/{path}/unmarked", {"accept-encoding": "br, zstd"})
    assert codes(diagnosis) == {"compressed", "unreadable", "unmarked"}
    assert package in detail(diagnosis, "unreadable")


def test_codings_are_undone_in_the_opposite_order() -> None:
    assert accepted() == "gzip, deflate, br, zstd"
    data = brotli.compress(zstd.compress(BYTES))
    body = read_body([Chunk(0.0, data[:9]), Chunk(1.0, data[9:])], "zstd, br")
    assert [item.event.data for item in body.events] == ["1", "2"]
    assert not body.unreadable


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("br", brotli.compress(bytes(3 * MAX_BODY_BYTES), quality=1)),
        ("zstd", zstd.compress(bytes(3 * MAX_BODY_BYTES))),
    ],
)
def test_a_small_body_that_is_large_when_decompressed_is_read_up_to_a_limit(
    coding: str, data: bytes
) -> None:
    assert len(data) < MAX_BODY_BYTES // 100
    assert read_body([Chunk(0.0, data)], coding).size == MAX_BODY_BYTES
    decode = decoder_of(coding)
    assert len(decode(data, 10)) == 10


def test_zstandard_may_have_several_frames() -> None:
    data = zstd.compress(BYTES) + zstd.compress(b"data: 3\n\n")
    for cut in (3, len(data) // 2, len(data) - 3):
        body = read_body([Chunk(0.0, data[:cut]), Chunk(1.0, data[cut:])], "zstd")
        assert [item.event.data for item in body.events] == ["1", "2", "3"]
