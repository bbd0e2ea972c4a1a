"""One response: the events of Qwen in, the events of OpenAI's Responses out, and the record."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import aclosing
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from example_app.completions.transformer import SSETransformer
from example_app.responses.records import Outcome
from sse_middleware import current_stream, format_sse_event
from sse_middleware.sources import UpstreamError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from example_app.completions.qwen_client import QwenClient
    from example_app.responses.records import Records

FAILED: Final = {"code": "server_error", "message": "The upstream service has failed."}
LOST: Final = {"code": "server_error", "message": "The response was interrupted."}


def new_response(**fields: Any) -> dict[str, Any]:
    """Return the object of a response that begins."""
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
        **fields,
    }


class ResponseRun:
    """Produce one response.

    Args:
        qwen: sends the requests to Qwen.
        records: keeps the outcome.
        response: the object of the response, from `new_response`.

    Attributes:
        failure: why the response has failed, `None` if it has not.
    """

    def __init__(self, qwen: QwenClient, records: Records, response: dict[str, Any]) -> None:
        """Store the parts."""
        self.failure: UpstreamError | None = None
        self._qwen = qwen
        self._records = records
        self._response = response
        self._numbers = count()
        self._text = ""
        self._transformer = SSETransformer(response["model"])
        self._item_id = f"msg_{uuid.uuid4().hex}"

    async def events(self, message: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events: those of the begin, a delta for each piece, and those of the end.

        Args:
            message: the message for Qwen.
        """
        is_queued = self._response["background"]
        first = {**self._response, "status": "queued" if is_queued else "in_progress"}
        yield self._event("response.created", response=first)
        if is_queued:
            yield self._event("response.queued", response=first)
        yield self._event("response.in_progress", response=self._response)
        item = {**self._item("in_progress"), "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._part_event("response.content_part.added", part=_part(""))
        try:
            async for piece in self._pieces(message):
                self._text += piece
                yield self._part_event("response.output_text.delta", delta=piece, logprobs=[])
        except UpstreamError as exc:
            self.failure = exc
            yield await self._end("failed", error=FAILED)
            return
        yield self._part_event("response.output_text.done", text=self._text, logprobs=[])
        yield self._part_event("response.content_part.done", part=_part(self._text))
        item = self._item("completed")
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield await self._end("completed", completed_at=int(time.time()))

    async def stream(self, message: dict[str, Any]) -> AsyncIterator[bytes]:
        """Yield the events as an event stream."""
        async with aclosing(self.events(message)) as events:
            async for event in events:
                yield format_response_event(event)

    async def _pieces(self, message: dict[str, Any]) -> AsyncIterator[str]:
        async with aclosing(self._qwen.send_message(message)) as events:
            async for event in events:
                current_stream().usage(event, model=self._response["model"], provider="qwen")
                if (chunk := self._transformer.transform_chunk(event)) is not None:
                    yield chunk["choices"][0]["delta"]["content"]
        if not self._transformer.is_finished:
            raise UpstreamError("Qwen has ended its stream before the answer was finished")

    async def _end(self, status: str, **fields: Any) -> dict[str, Any]:
        """Store the outcome before the client gets it, and return the last event."""
        output = [self._item("completed" if status == "completed" else "incomplete")]
        usage = self._usage()
        end = {**self._response, "status": status, "output": output, "usage": usage, **fields}
        event = self._event(f"response.{status}", response=end)
        number, parent_id = event["sequence_number"], self._transformer.parent_id
        await self._records.finish(self._response["id"], Outcome(end, number, parent_id))
        return event

    def _usage(self) -> dict[str, Any]:
        usage = self._transformer.final_chunks()[-1]["usage"]
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }

    def _item(self, status: str) -> dict[str, Any]:
        head = {"id": self._item_id, "type": "message", "role": "assistant", "status": status}
        return {**head, "content": [_part(self._text)]}

    def _part_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}


def format_response_event(event: dict[str, Any]) -> bytes:
    """Return an event as a frame."""
    return format_sse_event(json.dumps(event, ensure_ascii=False), event=event["type"])


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}
