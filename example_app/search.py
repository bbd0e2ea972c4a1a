"""Answer questions from a bundled corpus, extractively: every sentence is quoted, none invented.

A question is ranked against the passages by BM25 (the library `bm25s`); the best sentences of the
best passages become the answer, each followed by the mark `[n]` of its passage. The citations are
read back out of the finished text, as they would be from a model's, so that the two cannot differ.

Nothing here knows about the web: no framework, no event loop, no files but the corpus.
"""

from __future__ import annotations

import heapq
import json
import logging
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import bm25s  # type: ignore[import-untyped]  # the library ships no type information

from example_app.citations import MARK, Citation, excerpt, find_citations

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

CORPUS_PATH: Final = Path(__file__).parent / "corpus" / "passages.jsonl"
KnowledgeBase = Literal["faq", "glossary", "howto", "library", "reference", "tutorial"]
"""The parts of the corpus in which a search may be made."""
NOTHING_FOUND: Final = "I found nothing about that in the Python documentation I know."

RESULT_LIMIT: Final = 10
SOURCE_LIMIT: Final = 5
SENTENCE_LIMIT: Final = 5
# A sentence with less than this share of the best score is off the subject.
SHARE_OF_BEST: Final = 0.5
# Below this confidence a passage shares a stray word with the question, and does not answer it.
CONFIDENCE_FLOOR: Final = 0.25

_WORD: Final = re.compile(r"[^\W_]+")
_PIECE: Final = re.compile(r"\s*\S+\s*|\s+")
_SENTENCE_END: Final = re.compile(r"[.!?][\"'\u201d\u2019)\]]*\s+(?=[A-Z0-9\"'\u201c\u2018(_@*])")
_ABBREVIATION: Final = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|resp)\.$")
_LEANS_ON_THE_ONE_BEFORE: Final = re.compile(
    r"(?:This|These|That|Those|It|Its|They|Their|He|Such|Thus|However|Then|Also|But|And|Or|So|Hence"
    r"|Therefore|Otherwise|Similarly|Likewise|Another|Instead|Again|Moreover|Furthermore|Both"
    r"|Finally|First|Second|Third|For (?:example|instance)|In (?:this|that|the former|the latter"
    r"|addition|contrast|other words|particular|fact)|As a result|Because of (?:this|that)"
    r"|The (?:former|latter|other|same)|If (?:it|they|this|not)|When (?:it|they|this)|Note|Here"
    r"|Now)\b",
)
_POINTS_ELSEWHERE: Final = re.compile(r"(?:Also )?[Ss]ee\b|(?:More|For more) information\b")
# The shortest stem, in characters: shorter words keep their endings.
_STEM_CHARACTERS: Final = 3
_WORDS_WITHOUT_WEIGHT: Final = """
a about am an and any are as at be been being between but by can could did do does doing don
difference explain for from get got had happen happens has have how i if in into is it its me mean
means might must my need of on one or our please shall should so some tell than that the their them
then there these they this those to too two us use used uses using want was way we were what when
where which who whose why will work works would you your
"""
_STOP_WORDS: Final = frozenset(_WORDS_WITHOUT_WEIGHT.split())


@dataclass(frozen=True, slots=True)
class Passage:
    """One piece of prose of the corpus, with the place it comes from."""

    document_name: str
    section: str
    url: str
    text: str

    @property
    def kb_id(self) -> str:
        """The knowledge base of the passage, such as `howto` of "Python HOWTO: Sorting"."""
        return self.document_name.partition(":")[0].rpartition(" ")[2].lower()


@dataclass(frozen=True, slots=True)
class Hit:
    """One ranked passage: a row of the list of results."""

    document_name: str
    section: str
    url: str
    score: float
    excerpt: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: its text with marks, what the marks stand for, and how sure we are.

    The confidence is from 0 to 100.
    """

    text: str
    citations: tuple[Citation, ...]
    confidence_score: int
    results: tuple[Hit, ...]

    def shortened(self, max_tokens: int) -> Answer:
        """Return the beginning of the answer, with the citations that it marks."""
        text = "".join(split_tokens(self.text)[:max_tokens])
        marked = {int(number) for number in MARK.findall(text)}
        citations = tuple(one for one in self.citations if one.number in marked)
        return replace(self, text=text, citations=citations)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """A passage with its place in the corpus and its BM25 score for one question."""

    place: int
    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class _Offer:
    """Consecutive sentences of one source, and what they are worth to the question."""

    source: int
    first: int
    last: int
    worth: float


def load_passages(path: Path = CORPUS_PATH) -> list[Passage]:
    """Read the corpus.

    Args:
        path: a JSON-lines file; each line has exactly the fields of `Passage`, all of them text.

    Returns:
        The passages in the order of the file.

    """
    with path.open(encoding="utf-8") as lines:
        return [Passage(**json.loads(line)) for line in lines]


def split_tokens(text: str) -> list[str]:
    """Cut a text into word-sized pieces that concatenate to exactly the text."""
    return _PIECE.findall(text)


def split_sentences(text: str) -> list[str]:
    """Cut prose into its sentences, without the space between them."""
    sentences = []
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if _ABBREVIATION.search(text, start, end.start() + 1):
            continue
        sentences.append(text[start : end.end()].strip())
        start = end.end()
    rest = text[start:].strip()
    return [*sentences, rest] if rest else sentences


class SearchIndex:
    """The corpus, indexed once; questions do not change it, so that threads may share it."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        """Index the passages; a second for a few thousand of them.

        Args:
            passages: what to answer from; at least one.

        """
        # bm25s sets its own logger to DEBUG, which would leak into an application's log.
        logging.getLogger("bm25s").setLevel(logging.WARNING)
        self._passages = tuple(passages)
        documents = [_document_terms(passage) for passage in self._passages]
        self._document_frequency = Counter(term for terms in documents for term in set(terms))
        # Explicit, because "auto" would use numba or scipy if they are installed.
        self._ranker = bm25s.BM25(method="lucene", backend="numpy", csc_backend="numpy")
        self._ranker.index(documents, show_progress=False)

    def __len__(self) -> int:
        """Count the passages."""
        return len(self._passages)

    def answer(self, question: str, kb_ids: Collection[KnowledgeBase] | None = None) -> Answer:
        """Answer a question with two to five quoted sentences, or with `NOTHING_FOUND`.

        `confidence_score` is the BM25 score of the best passage as a share of the score that no
        passage can exceed for this question: in Lucene's variant a term adds at most its inverse
        document frequency, so the bound is the sum of those, unknown words included. The share
        lies in 0..100 and grows with the score. Below `CONFIDENCE_FLOOR` the answer is
        `NOTHING_FOUND`, with confidence 0 and without citations.

        Args:
            question: any text; only words count.
            kb_ids: the knowledge bases in which to search, `None` for all.

        Returns:
            The answer. A passage that consists of a single sentence and is alone in matching
            makes an answer of one sentence.

        """
        terms = set(_terms(question))
        if (heading := _heading_term(question)) in self._document_frequency:
            terms.add(heading)
        ranked = self._rank(terms, RESULT_LIMIT, kb_ids)
        if not ranked:
            return Answer(NOTHING_FOUND, (), 0, ())
        attainable = sum(self._weight(term) for term in terms)
        confidence = min(1.0, ranked[0].score / attainable)
        quotes = self._choose_quotes(terms, ranked) if confidence >= CONFIDENCE_FLOOR else []
        results = tuple(_hit(entry) for entry in ranked)
        if not quotes:
            return Answer(NOTHING_FOUND, (), 0, results)
        text, sources = _compose(quotes)
        return Answer(text, find_citations(text, sources), round(100 * confidence), results)

    def _rank(self, terms: set[str], limit: int, kb_ids: Collection[str] | None) -> list[_Ranked]:
        """Order the passages that share a term with the question by their score, best first."""
        known = sorted(term for term in terms if term in self._document_frequency)
        if not known:
            return []
        scores: list[float] = self._ranker.get_scores(known).tolist()
        searched = [
            n
            for n, passage in enumerate(self._passages)
            if scores[n] > 0 and (kb_ids is None or passage.kb_id in kb_ids)
        ]
        best = heapq.nlargest(limit, searched, key=scores.__getitem__)
        return [_Ranked(n, self._passages[n], scores[n]) for n in best]

    def _weight(self, term: str) -> float:
        """Return the weight of a term: its inverse document frequency in Lucene's form."""
        frequency = self._document_frequency[term]
        return math.log(1 + (len(self._passages) - frequency + 0.5) / (frequency + 0.5))

    def _choose_quotes(
        self,
        terms: set[str],
        ranked: Sequence[_Ranked],
    ) -> list[tuple[Passage, str]]:
        """Pick the sentences with the highest score for the question, in reading order."""
        sources = _reading_order(ranked[:SOURCE_LIMIT])
        offers = sorted(
            self._offers(terms, sources, ranked[0].score),
            key=lambda offer: (-offer.worth, offer.source, offer.first),
        )
        taken: set[tuple[int, int]] = set()
        for offer in offers:
            if len(taken) > 1 and offer.worth < SHARE_OF_BEST * offers[0].worth:
                break
            places = {(offer.source, n) for n in range(offer.first, offer.last + 1)}
            if len(taken | places) <= SENTENCE_LIMIT:
                taken |= places
        passages = [source.passage for source in sources]
        return [(passages[n], split_sentences(passages[n].text)[m]) for n, m in sorted(taken)]

    def _offers(
        self,
        terms: set[str],
        sources: Sequence[_Ranked],
        best_score: float,
    ) -> Iterable[_Offer]:
        """Offer each sentence of the sources, together with those before it that it leans on."""
        total = sum(self._weight(term) for term in terms)
        for number, source in enumerate(sources):
            heading = self._overlap(terms, source.passage.section) / total
            opens_section = source.place == 0 or (
                self._passages[source.place - 1].url != source.passage.url
            )
            sentences = split_sentences(source.passage.text)
            first = 0
            for last, sentence in enumerate(sentences):
                if _LEANS_ON_THE_ONE_BEFORE.match(sentence) is None:
                    first = last
                if any(map(_unfit_to_quote, sentences[first : last + 1])):
                    continue
                # Text under a heading that matches the question answers it, above all its opening.
                said = self._overlap(terms, sentence) / total
                worth = said + heading * (1.0 if opens_section and last == 0 else 0.5)
                if worth > 0:
                    yield _Offer(number, first, last, worth * source.score / best_score)

    def _overlap(self, terms: set[str], text: str) -> float:
        return sum(self._weight(term) for term in terms.intersection(_terms(text)))


def _reading_order(ranked: Sequence[_Ranked]) -> list[_Ranked]:
    """Keep the best section first, but put the pieces of one section in their own order."""
    sections = list(dict.fromkeys(entry.passage.url for entry in ranked))
    return sorted(ranked, key=lambda entry: (sections.index(entry.passage.url), entry.place))


def _unfit_to_quote(sentence: str) -> bool:
    """Return whether a sentence contains a mark like ours, or only refers to another place."""
    return MARK.search(sentence) is not None or _POINTS_ELSEWHERE.match(sentence) is not None


def _compose(quotes: Sequence[tuple[Passage, str]]) -> tuple[str, dict[int, Passage]]:
    """Write the answer, numbering the passages in the order in which it quotes them."""
    numbers: dict[Passage, int] = {}
    marked = [
        f"{sentence} [{numbers.setdefault(passage, len(numbers) + 1)}]"
        for passage, sentence in quotes
    ]
    return " ".join(marked), {number: passage for passage, number in numbers.items()}


def _hit(entry: _Ranked) -> Hit:
    passage = entry.passage
    return Hit(
        document_name=passage.document_name,
        section=passage.section,
        url=passage.url,
        score=round(entry.score, 4),
        excerpt=excerpt(passage.text),
    )


def _document_terms(passage: Passage) -> list[str]:
    """List the terms of a passage; its heading counts twice, because it names the subject."""
    text = f"{passage.document_name} {passage.section} {passage.section} {passage.text}"
    return [*_terms(text), _heading_term(passage.section)]


def _heading_term(text: str) -> str:
    """Make one term of a whole heading, which a question in the same words matches as a whole.

    Without it "What is a generator?" finds the passage that repeats the word most, rather than the
    one headed "generator". The equals sign keeps it apart from the words.
    """
    return "=" + " ".join(sorted(set(_terms(text))))


def _terms(text: str) -> list[str]:
    """List the words of a text that carry meaning, reduced to their stems."""
    return [_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]


def _stem(word: str) -> str:
    """Take the commonest English endings off, so that `generators` finds `generator`.

    Both sides pass through here, so a stem need not be a word: `cache` and `caching` are `cach`.
    """
    if word.endswith("sses"):
        word = word[:-2]
    elif len(word) > _STEM_CHARACTERS and word.endswith("ies"):
        word = f"{word[:-3]}y"
    elif len(word) > _STEM_CHARACTERS and re.search("[^sui]s$", word):
        word = word[:-1]
    for ending in ("ing", "ed"):
        root = word.removesuffix(ending)
        if root != word and len(root) >= _STEM_CHARACTERS and re.search("[aeiouy]", root):
            doubled = root[-1] == root[-2] and root[-1] not in "lsz"
            word = root[:-1] if doubled else root
            break
    return word.removesuffix("e") if len(word) > _STEM_CHARACTERS else word
