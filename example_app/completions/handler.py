"""Run one completion: request it from Qwen, and translate Qwen's events into OpenAI's chunks.

A session is a conversation: Qwen gives each answer an id, and the next question of the session
names the id of the answer that it follows (`parent_id`). The id of a new answer is stored after the
answer is finished, so that a failed or stopped answer leaves the session unchanged.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from example_app.completions.transformer import SSETransformer
from sse_middleware import current_stream, format_sse_event
from sse_middleware.sources import UpstreamError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from example_app.completions.qwen_client import QwenClient
    from example_app.completions.sessions import SessionManager

SSE_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Connection": "keep-alive",
    "X-Accel-Buffering": "no",
}
DONE: Final = format_sse_event("[DONE]")


class SSEHandler:
    """Answer questions as chunks, as an event stream, or as one document.

    Args:
        qwen_client: sends the questions to Qwen and yields its events.
        session_manager: stores the id of the latest answer of each session.
    """

    def __init__(self, qwen_client: QwenClient, session_manager: SessionManager) -> None:
        """Store the arguments."""
        self._qwen_client = qwen_client
        self._session_manager = session_manager

    async def get_parent_id(self, session_id: str) -> str | None:
        """Return the id of the latest answer of a session, `None` if the session is new."""
        return await self._session_manager.get_parent_id(session_id)

    async def chunks(
        self, qwen_message: dict[str, Any], session_id: str, model: str
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield each chunk of an answer when it arrives; after the last one, update the session.

        Raises:
            UpstreamError: Qwen has failed, or its stream has ended before the answer was finished.
                The session is not updated.
        """
        transformer = SSETransformer(model)
        events = self._qwen_client.send_message(qwen_message)
        try:
            async for event in events:
                current_stream().usage(event, model=model, provider="qwen")
                if (chunk := transformer.transform_chunk(event)) is not None:
                    yield chunk
        finally:
            await events.aclose()
        if not transformer.is_finished:
            raise UpstreamError("Qwen has ended its stream before the answer was finished")
        for chunk in transformer.final_chunks():
            yield chunk
        # The session is updated before the client receives the end, because the client may send its
        # next question at once.
        if transformer.parent_id is not None:
            await self._session_manager.update_session(session_id, transformer.parent_id)

    async def stream_completion(
        self, qwen_message: dict[str, Any], session_id: str, model: str
    ) -> AsyncIterator[bytes]:
        """Yield the chunks of an answer as events, and `[DONE]` as the last one."""
        async for chunk in self.chunks(qwen_message, session_id, model):
            yield format_sse_event(json.dumps(chunk, ensure_ascii=False))
        yield DONE

    async def complete(
        self, qwen_message: dict[str, Any], session_id: str, model: str
    ) -> dict[str, Any]:
        """Return an answer as one `chat.completion` document, for clients that do not stream."""
        text, last = "", dict[str, Any]()
        async for chunk in self.chunks(qwen_message, session_id, model):
            last = chunk
            for choice in chunk["choices"]:
                text += choice["delta"].get("content", "")
        message = {"role": "assistant", "content": text}
        return {
            **last,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
