"""What the events of Qwen become: the chunks of OpenAI's chat completions."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sse_middleware import Event

logger = logging.getLogger(__name__)

_FINISHED: Final = "finished"


class SSETransformer:
    """Transform the events of one answer.

    Args:
        model: the name of the model that the chunks have.

    Attributes:
        parent_id: the id under which the conversation continues, `None` before it is known.
        is_finished: whether the answer is complete.
    """

    def __init__(self, model: str) -> None:
        """Begin an answer."""
        self.parent_id: str | None = None
        self.is_finished = False
        self._model = model
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._has_role = False
        self._usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    def transform_chunk(self, event: Event) -> dict[str, Any] | None:
        """Return the chunk for an event of Qwen, `None` for none.

        An event that is malformed is logged, without its text, and skipped.
        """
        try:
            return self._transform(json.loads(event.data))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
            logger.warning("an event of Qwen is malformed and skipped: %s", type(exc).__name__)
            return None

    def final_chunks(self) -> list[dict[str, Any]]:
        """Return the last chunks: the reason of the end, and the usage."""
        finish = self._chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        return [finish, {**self._chunk([]), "usage": self._usage}]

    def _transform(self, data: dict[str, Any]) -> dict[str, Any] | None:
        if "response.created" in data:
            self.parent_id = str(data["response.created"]["parent_id"])
            return None
        if usage := data.get("usage"):
            prompt, completion = int(usage["input_tokens"]), int(usage["output_tokens"])
            total = prompt + completion
            self._usage = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": total,
            }
        delta = data["choices"][0]["delta"]
        if delta.get("status") == _FINISHED:
            self.is_finished = True
        content = delta.get("content")
        if not content:
            return None
        role = {} if self._has_role else {"role": "assistant"}
        self._has_role = True
        chunk = {"index": 0, "delta": {**role, "content": str(content)}, "finish_reason": None}
        return self._chunk([chunk])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }


class AttemptCompletion:
    """A transform of a mark: wrap the text of an answer as Roo Code expects it.

    The first chunk with text begins with `<attempt_completion>`; a chunk with the end tag precedes
    the one with the reason of the end.
    """

    def __init__(self) -> None:
        """Begin an answer."""
        self._has_begun = False

    def __call__(self, event: Event) -> Event | list[Event]:
        """Return what is sent in place of one chunk."""
        data = json.loads(event.data)
        choice: dict[str, Any] = next(iter(data.get("choices", ())), {})
        content = choice.get("delta", {}).get("content")
        if content and not self._has_begun:
            self._has_begun = True
            choice["delta"]["content"] = f"<attempt_completion>\n<result>\n{content}"
            return dataclasses.replace(event, data=json.dumps(data))
        if choice.get("finish_reason") and self._has_begun:
            delta = {"content": "\n</result>\n</attempt_completion>"}
            end = {**data, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            return [dataclasses.replace(event, data=json.dumps(end)), event]
        return event
