"""The requests to Qwen's chat."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from sse_middleware.sources import upstream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    import httpx2

    from sse_middleware import Event


class QwenClient:
    """Send messages to Qwen.

    Args:
        client: a client with the address of the service as `base_url`.
    """

    def __init__(self, client: httpx2.AsyncClient) -> None:
        """Store the client."""
        self._client = client

    def send_message(self, message: dict[str, Any]) -> AsyncGenerator[Event, None]:
        """Return the events of the answer; the request is sent when the first one is read."""
        path, query = "/api/v2/chat/completions", {"chat_id": message["chat_id"]}
        request = self._client.build_request("POST", path, params=query, json=message)
        return upstream(self._client, request, parse=True)


def transform_openai_to_qwen(
    messages: Sequence[dict[str, Any]], model: str, session_id: str, parent_id: str | None
) -> dict[str, Any]:
    """Return the message for Qwen: the last one of the user, since Qwen has the others.

    Args:
        messages: those of OpenAI's request, each with `role` and a text as `content`.
        model: the name of the model.
        session_id: the conversation.
        parent_id: the answer after which it continues, `None` for the first question.
    """
    question = next(one["content"] for one in reversed(messages) if one["role"] == "user")
    return {
        "stream": True,
        "incremental_output": True,
        "chat_id": str(uuid.uuid5(uuid.NAMESPACE_OID, session_id)),
        "parent_id": parent_id,
        "model": model,
        "messages": [{"role": "user", "content": question, "parent_id": parent_id}],
    }
