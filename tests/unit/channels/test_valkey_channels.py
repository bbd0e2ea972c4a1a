"""The contract of channels on Valkey."""

from collections.abc import Iterator

import pytest

from tests.support.channel_contract import ChannelContract
from tests.support.redis_server import RedisServer, need_valkey_server

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("closed_channels")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class TestInValkey(ChannelContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        directory = tmp_path_factory.mktemp("valkey")
        with RedisServer(directory, program=need_valkey_server()) as server:
            cls.url = server.patient_url
            yield
