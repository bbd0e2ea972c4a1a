"""The endpoints: create a response, retrieve it as an object or a stream, cancel and delete it."""

import hashlib
import time
from contextlib import aclosing
from typing import Annotated, Any, Final

import httpx2
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, StringConstraints
from starlette.datastructures import QueryParams
from starlette.types import Message, Receive, Scope, Send

from example_app.completions.endpoint import DEFAULT_MODEL, ChatMessage, Text, create_qwen_client
from example_app.completions.qwen_client import QwenClient, transform_openai_to_qwen
from example_app.identity import identity_of
from example_app.responses.inner import PATH, InnerClient
from example_app.responses.records import Outcome, Record, Records, create_records
from example_app.responses.run import LOST, ResponseRun, format_response_event, new_response
from example_app.search import SearchIndex
from sse_middleware import current_stream, resume_endpoint, streaming

BACKGROUND_SECONDS: Final = 600.0
"""For how long a response in the background continues after its client has left."""
NEW_SECONDS: Final = 5.0
"""The age up to which a response counts as running although no worker knows of its stream yet."""

_NAME: Final = "response:{response_id}"


class ResponseRequest(BaseModel):
    """The part of OpenAI's request that is used; the rest is accepted and ignored."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=100)] = DEFAULT_MODEL
    input: Text | Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    background: bool | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: Annotated[str, StringConstraints(max_length=100)] | None = None
    metadata: dict[str, str] | None = None

    def question(self) -> str | None:
        """Return the last message of the user, `None` if there is none."""
        if isinstance(self.input, str):
            return self.input
        texts = [one.as_text() for one in self.input]
        return next((one["content"] for one in reversed(texts) if one["role"] == "user"), None)


class Responses:
    """Produce responses, and know of all.

    Args:
        qwen: sends the requests to Qwen.
        records: keeps what is known of each response.
        inner: makes requests to this server.
    """

    def __init__(self, qwen: QwenClient, records: Records, inner: InnerClient) -> None:
        """Store the parts."""
        self.qwen = qwen
        self.records = records
        self.inner = inner

    async def find(self, response_id: str, scope: Scope) -> Record | None:
        """Return the record of a response, `None` if the client has no such response."""
        record = await self.records.get(response_id)
        return record if record is not None and record.owner == owner_of(scope) else None

    async def current(self, record: Record, authorization: str) -> dict[str, Any]:
        """Return a response as it is now."""
        response_id, now = record.response["id"], time.time()
        if record.outcome is None and now - record.response["created_at"] > NEW_SECONDS:
            is_running = await self.inner.is_running(response_id, authorization)
            again = await self.records.get(response_id)  # it may have ended in the meantime
            record = again or record
            if record.outcome is None and not is_running:
                return {**record.response, "status": "failed", "error": LOST}
        return record.response if record.outcome is None else record.outcome.response


class RetrieveResponse:
    """`GET /v1/responses/{response_id}`: the object; with `stream`, its events."""

    def __init__(self) -> None:
        """Create the endpoint that serves the stream."""
        self._stream = resume_endpoint(_NAME, finished="replay")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request."""
        request = Request(scope)
        responses = _responses(request)
        record = await responses.find(scope["path_params"]["response_id"], scope)
        if record is None:
            await _not_found()(scope, receive, send)
        elif request.query_params.get("stream") not in ("true", "True", "1"):
            authorization = request.headers.get("authorization", "")
            response = JSONResponse(await responses.current(record, authorization))
            await response(scope, receive, send)
        else:
            await self._send_stream(record.outcome, scope, receive, send)

    async def _send_stream(
        self, outcome: Outcome | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send the events, or if they are no longer kept, the last one of them."""
        query = QueryParams(scope["query_string"])
        if "starting_after" not in query:
            # A position lets the lookup wait for a stream that has begun on another worker.
            scope = {**scope, "query_string": scope["query_string"] + b"&after=0"}
        is_gone = False

        async def send_unless_gone(message: Message) -> None:
            nonlocal is_gone
            if message["type"] == "http.response.start":
                is_gone = message["status"] == httpx2.codes.NO_CONTENT
            if not is_gone:
                await send(message)

        await self._stream(scope, receive, send_unless_gone)
        if is_gone:
            await _last_event(outcome, query)(scope, receive, send)


def add_responses(app: FastAPI) -> None:
    """Add the endpoints."""
    one = f"{PATH}/{{response_id}}"
    app.post(PATH, response_model=None)(create_response)
    app.add_route(one, RetrieveResponse(), methods=["GET"])  # type: ignore[arg-type]  # an ASGI app
    app.delete(one)(delete_response)
    app.post(f"{one}/cancel", response_model=None)(cancel_response)
    app.add_route(f"{one}/live", resume_endpoint(_NAME), methods=["GET", "HEAD", "DELETE"])


def create_responses(
    app: FastAPI,
    index: SearchIndex,
    *,
    token_delay_seconds: float,
    client: httpx2.AsyncClient | None = None,
) -> Responses:
    """Return the object that produces all responses, with the arguments of `create_handler`."""
    qwen = create_qwen_client(index, token_delay_seconds=token_delay_seconds, client=client)
    return Responses(qwen, create_records(), InnerClient(app))


@streaming(linger_seconds=BACKGROUND_SECONDS)
async def create_response(request: Request, body: ResponseRequest) -> Response:
    """Answer as an object, as a stream, or in the background."""
    question, responses = body.question(), _responses(request)
    if question is None:
        return _error(400, "input has no message of the user", "invalid_input")
    if body.background and body.store is False:
        return _error(400, "background needs store", "invalid_background")
    parent_id = None
    if body.previous_response_id is not None:
        previous = await responses.find(body.previous_response_id, request.scope)
        if previous is None or previous.outcome is None or previous.outcome.parent_id is None:
            return _error(400, "previous_response_id is not known", "previous_response_not_found")
        parent_id = previous.outcome.parent_id
    if body.background and not body.stream:
        sent = {**body.model_dump(mode="json"), "stream": True}
        authorization = request.headers.get("authorization", "")
        return JSONResponse(await responses.inner.begin(sent, authorization))
    response = new_response(
        model=body.model,
        background=bool(body.background),
        previous_response_id=body.previous_response_id,
        metadata=body.metadata or {},
    )
    if body.store is not False:
        await responses.records.add(Record(owner_of(request.scope), response))
    run = ResponseRun(responses.qwen, responses.records, response)
    messages = [{"role": "user", "content": question}]
    message = transform_openai_to_qwen(messages, body.model, response["id"], parent_id)
    if not body.stream:
        return JSONResponse(await _last_response(run, message))
    if body.background:
        current_stream().name(_NAME.format(response_id=response["id"]))
    return StreamingResponse(run.stream(message), media_type="text/event-stream")


async def cancel_response(response_id: str, request: Request) -> Response:
    """Stop a response in the background; a later cancel has no effect."""
    responses = _responses(request)
    record = await responses.find(response_id, request.scope)
    if record is None:
        return _not_found()
    if not record.response["background"]:
        return _error(400, "Only a response in the background can be cancelled.", "not_background")
    if record.outcome is None:
        end = {**record.response, "status": "cancelled"}
        await responses.records.finish(response_id, Outcome(end))
        await responses.inner.stop(response_id, request.headers.get("authorization", ""))
        record = await responses.records.get(response_id) or record
    return JSONResponse(end if record.outcome is None else record.outcome.response)


async def delete_response(response_id: str, request: Request) -> Response:
    """Stop a response, and delete what is known of it."""
    responses = _responses(request)
    record = await responses.find(response_id, request.scope)
    if record is None:
        return _not_found()
    if record.outcome is None:
        await responses.inner.stop(response_id, request.headers.get("authorization", ""))
    await responses.records.delete(response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


def owner_of(scope: Scope) -> str:
    """Return a digest of the identity of a request."""
    identity = (identity_of(scope) or "").encode("utf-8", "surrogatepass")
    return hashlib.blake2b(identity, digest_size=16).hexdigest()


def _responses(request: Request) -> Responses:
    found: Responses = request.app.state.responses
    return found


async def _last_response(run: ResponseRun, message: dict[str, Any]) -> dict[str, Any]:
    """Return the whole response; raise if it has failed, so that the failure has a status."""
    response = dict[str, Any]()
    async with aclosing(run.events(message)) as events:
        async for event in events:
            response = event.get("response", response)
    if run.failure is not None:
        raise run.failure
    return response


def _last_event(outcome: Outcome | None, query: QueryParams) -> Response:
    """Return the stream of a response whose events are not kept any more: its last event."""
    if outcome is None or outcome.sequence_number < 0:
        return _error(410, "The response has no more events.", "stream_ended")
    after = query.get("starting_after", "")
    number, response = outcome.sequence_number, outcome.response
    event = {"type": f"response.{response['status']}", "sequence_number": number}
    is_read = after.isascii() and after.isdigit() and int(after) >= number
    frames = b"" if is_read else format_response_event({**event, "response": response})
    return Response(frames, media_type="text/event-stream")


def _not_found() -> Response:
    return _error(404, "There is no such response.", "not_found")


def _error(status: int, message: str, code: str) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status)
