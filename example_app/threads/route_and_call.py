"""The ladder of providers: Qwen, and if it fails before its first piece, the corpus itself."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from example_app.completions.qwen_client import transform_openai_to_qwen
from example_app.completions.transformer import SSETransformer
from example_app.search import split_tokens
from sse_middleware import current_stream
from sse_middleware.sources import Source, UpstreamError, fallback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from example_app.completions.qwen_client import QwenClient
    from example_app.completions.sessions import SessionManager
    from example_app.search import SearchIndex

_MODEL: Final = "qwen3-max"
_FIRST_EVENT_SECONDS: Final = 5.0


class Router:
    """Answer a message of a thread by one of the providers.

    Args:
        qwen: sends the requests to Qwen.
        sessions: keeps where each thread continues at Qwen.
        index: the index of the corpus.
    """

    def __init__(self, qwen: QwenClient, sessions: SessionManager, index: SearchIndex) -> None:
        """Make the sources, which live as long as the app."""
        self._client = qwen
        self._sessions = sessions
        self._index = index
        self._qwen = Source("qwen", self._ask_qwen)
        self._corpus = Source("corpus", self._ask_corpus)

    def route_and_call(self, thread_id: str, user_content: str) -> dict[str, Any]:
        """Return the result, with the pieces of the answer as its `stream`."""
        stream = fallback(
            self._qwen(thread_id, user_content),
            self._corpus(user_content),
            first_event_timeout=_FIRST_EVENT_SECONDS,
        )
        return {"result": {"stream": stream}}

    async def _ask_qwen(self, thread_id: str, user_content: str) -> AsyncIterator[str]:
        transformer = SSETransformer(_MODEL)
        session_id = f"thread:{thread_id}"
        message = transform_openai_to_qwen(
            [{"role": "user", "content": user_content}],
            _MODEL,
            session_id,
            await self._sessions.get_parent_id(session_id),
        )
        async with aclosing(self._client.send_message(message)) as events:
            async for event in events:
                current_stream().usage(event, model=_MODEL, provider="qwen")
                if (chunk := transformer.transform_chunk(event)) is not None:
                    yield chunk["choices"][0]["delta"]["content"]
        if not transformer.is_finished:
            raise UpstreamError("Qwen has ended its stream before the answer was finished")
        if transformer.parent_id is not None:
            await self._sessions.update_session(session_id, transformer.parent_id)

    async def _ask_corpus(self, user_content: str) -> AsyncIterator[str]:
        answer = await asyncio.to_thread(self._index.answer, user_content)
        for piece in split_tokens(answer.text):
            yield piece
