"""One answer: the events of Qwen in, the chunks of OpenAI out, and the session after the end."""

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
    """Stream completions.

    Args:
        qwen_client: sends the requests to Qwen.
        session_manager: keeps the sessions.
    """

    def __init__(self, qwen_client: QwenClient, session_manager: SessionManager) -> None:
        """Store the parts."""
        self._qwen_client = qwen_client
        self._session_manager = session_manager

    async def get_parent_id(self, session_id: str) -> str | None:
        """Return the answer after which a session continues, `None` for a new one."""
        return await self._session_manager.get_parent_id(session_id)

    async def chunks(
        self, qwen_message: dict[str, Any], session_id: str, model: str
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of an answer, each at once; then store where the session continues.

        Raises:
            UpstreamError: Qwen has failed; or its stream has ended before the answer was finished,
                so that the session stays where it was.
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
        # Before the client gets the end, so that its next question finds the session.
        if transformer.parent_id is not None:
            await self._session_manager.update_session(session_id, transformer.parent_id)

    async def stream_completion(
        self, qwen_message: dict[str, Any], session_id: str, model: str
    ) -> AsyncIterator[bytes]:
        """Yield an answer as an event stream with `[DONE]` at its end."""
        async for chunk in self.chunks(qwen_message, session_id, model):
            yield format_sse_event(json.dumps(chunk, ensure_ascii=False))
        yield DONE

    async def complete(
        self, qwen_message: dict[str, Any], session_id: str, model: str
    ) -> dict[str, Any]:
        """Return an answer as one document."""
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
