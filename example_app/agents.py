"""The agents of `/v1/react/sessions`, by the alias that a request selects.

An agent is an async generator of steps, which a worker publishes. All of them answer from the
corpus; they differ in how they get there, as the models of a product do.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from example_app.completions.qwen_client import transform_openai_to_qwen
from example_app.completions.transformer import SSETransformer
from example_app.search import NOTHING_FOUND, split_tokens
from sse_middleware.sources import UpstreamError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from example_app.completions.qwen_client import QwenClient
    from example_app.search import SearchIndex

ModelAlias = Literal["extractive", "smart_agent", "qwen3-max"]
"""The aliases; another one is refused before the stream."""
DEFAULT_ALIAS: Final[ModelAlias] = "extractive"
TOOL: Final = "search_documentation"

_MODEL: Final = "qwen3-max"
_QUESTION_WORDS: Final = "what|who|when|where|why|how|which"
_PARTS: Final = re.compile(rf"\?\s+|;\s+|,?\s+and\s+(?=(?:{_QUESTION_WORDS})\b)", re.IGNORECASE)


class Step(NamedTuple):
    """One step of an agent: a piece of a thought or of the answer, or the name of a tool."""

    kind: Literal["thought", "tool", "answer"]
    text: str


class Agents:
    """Answer questions by the agent that an alias selects.

    Args:
        index: the index of the corpus.
        qwen: sends the requests to Qwen.
    """

    def __init__(self, index: SearchIndex, qwen: QwenClient) -> None:
        """Store the arguments."""
        self._index = index
        self._qwen = qwen
        self._agents: dict[ModelAlias, Callable[[str], AsyncGenerator[Step, None]]] = {
            "extractive": self._search_once,
            "smart_agent": self._search_each_part,
            "qwen3-max": self._ask_qwen,
        }
        assert self._agents.keys() == set(get_args(ModelAlias))

    def run(self, alias: ModelAlias, question: str) -> AsyncGenerator[Step, None]:
        """Yield the steps of the answer to a question."""
        return self._agents[alias](question)

    async def _search_once(self, question: str) -> AsyncGenerator[Step, None]:
        """Search for the question as it is."""
        for piece in split_tokens(f"I search for: {question}"):
            yield Step("thought", piece)
        yield Step("tool", TOOL)
        for piece in split_tokens(await self._search(question)):
            yield Step("answer", piece)

    async def _search_each_part(self, question: str) -> AsyncGenerator[Step, None]:
        """Search for each part of a question, and leave out those of which nothing is known."""
        texts = list[str]()
        for part in split_question(question):
            begin = "\nI search for" if texts else "I search for"
            for piece in split_tokens(f"{begin}: {part}"):
                yield Step("thought", piece)
            yield Step("tool", TOOL)
            texts.append(await self._search(part))
        found = [text for text in dict.fromkeys(texts) if text != NOTHING_FOUND]
        for piece in split_tokens("\n\n".join(found) or NOTHING_FOUND):
            yield Step("answer", piece)

    async def _ask_qwen(self, question: str) -> AsyncGenerator[Step, None]:
        """Let the model answer, which needs no tool."""
        for piece in split_tokens(f"I ask {_MODEL}: {question}"):
            yield Step("thought", piece)
        transformer = SSETransformer(_MODEL)
        messages = [{"role": "user", "content": question}]
        message = transform_openai_to_qwen(messages, _MODEL, uuid.uuid4().hex, None)
        async with aclosing(self._qwen.send_message(message)) as events:
            async for event in events:
                if (chunk := transformer.transform_chunk(event)) is not None:
                    yield Step("answer", chunk["choices"][0]["delta"]["content"])
        if not transformer.is_finished:
            raise UpstreamError("Qwen has ended its stream before the answer was finished")

    async def _search(self, question: str) -> str:
        return (await asyncio.to_thread(self._index.answer, question)).text


def split_question(question: str) -> list[str]:
    """Return the parts of a question, in their order; a simple question is its only part."""
    return [part.strip() for part in _PARTS.split(question) if part.strip()] or [question]
