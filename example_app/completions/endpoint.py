"""The endpoint: OpenAI's request, and the answer as an event stream or as one document."""

from typing import Annotated, Any, Final, Literal

import httpx2
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, StringConstraints

from example_app.completions.handler import SSE_HEADERS, SSEHandler
from example_app.completions.in_process import InProcessTransport
from example_app.completions.qwen_client import QwenClient, transform_openai_to_qwen
from example_app.completions.qwen_service import create_qwen_service
from example_app.completions.sessions import create_sessions, get_or_create_session
from example_app.completions.transformer import AttemptCompletion
from example_app.search import SearchIndex
from sse_middleware import streaming
from sse_middleware.sources import UpstreamError, started

DEFAULT_MODEL: Final = "qwen3-max"
_MAX_CHARACTERS: Final = 100_000

Text = Annotated[str, StringConstraints(max_length=_MAX_CHARACTERS)]


class TextPart(BaseModel):
    """A part of a message; parts that are no text are not answered."""

    type: str
    text: Text = ""


class ChatMessage(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None

    def as_text(self) -> dict[str, str]:
        """Return the message with a text as its content."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": self.role, "content": text}


class ChatRequest(BaseModel):
    """The part of OpenAI's request that is used; the rest is accepted and ignored."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=100)] = DEFAULT_MODEL
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    stream: bool = False


def add_completions(app: FastAPI) -> None:
    """Add the endpoints, and the response to a request whose upstream has failed."""
    path = "/v1/chat/completions"
    app.post(path, response_model=None)(chat_completions)
    app.post(f"/roocode{path}", response_model=None)(wrapped_completions)
    app.exception_handler(UpstreamError)(_refuse)


def create_handler(
    index: SearchIndex, *, token_delay_seconds: float, client: httpx2.AsyncClient | None = None
) -> SSEHandler:
    """Return the handler of all completions.

    Args:
        index: the index of the corpus.
        token_delay_seconds: the pause between two pieces of an answer.
        client: reaches Qwen; by default it reaches the service in this process.
    """
    qwen = create_qwen_client(index, token_delay_seconds=token_delay_seconds, client=client)
    return SSEHandler(qwen, create_sessions())


def create_qwen_client(
    index: SearchIndex, *, token_delay_seconds: float, client: httpx2.AsyncClient | None = None
) -> QwenClient:
    """Return a client of Qwen, with the arguments of `create_handler`."""
    if client is None:
        service = create_qwen_service(index, token_delay_seconds=token_delay_seconds)
        transport = InProcessTransport(service)
        client = httpx2.AsyncClient(transport=transport, base_url="http://qwen", timeout=30)
    return QwenClient(client)


@streaming(family="openai")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer in the form of OpenAI's chat completions."""
    return await _answer(request, body)


@streaming(family="openai", transform=AttemptCompletion)
async def wrapped_completions(request: Request, body: ChatRequest) -> Response:
    """Answer with the text in `<attempt_completion>`, for Roo Code."""
    return await _answer(request, body)


async def _answer(request: Request, body: ChatRequest) -> Response:
    messages = [message.as_text() for message in body.messages]
    if not any(one["role"] == "user" for one in messages):
        return _error(400, "messages has no message of the user", "invalid_request_error")
    handler: SSEHandler = request.app.state.completions
    session_id = get_or_create_session(messages, request.headers.get("authorization", ""))
    parent_id = await handler.get_parent_id(session_id)
    qwen_message = transform_openai_to_qwen(messages, body.model, session_id, parent_id)
    if not body.stream:
        return JSONResponse(await handler.complete(qwen_message, session_id, body.model))
    events = await started(handler.stream_completion(qwen_message, session_id, body.model))
    return StreamingResponse(events, media_type="text/event-stream", headers=SSE_HEADERS)


async def _refuse(_request: Request, exc: UpstreamError) -> JSONResponse:
    """Return the status for a failure before the answer, in OpenAI's form and without details."""
    response = _error(exc.status_code, "The upstream service has failed.", "upstream_error")
    response.headers.update(exc.headers or {})
    return response


def _error(status: int, message: str, kind: str) -> JSONResponse:
    error: dict[str, Any] = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status)
