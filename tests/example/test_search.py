"""The search of the example: real passages, quoted sentences, marks that match citations."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from example_app.citations import find_citations
from example_app.search import (
    CORPUS_PATH,
    NOTHING_FOUND,
    Passage,
    SearchIndex,
    load_passages,
    split_sentences,
    split_tokens,
)

MARK = re.compile(r"\[([0-9]+)\]")

QUESTIONS = [
    ("What is a generator?", "tool for creating iterators"),
    ("Why are floating point numbers inaccurate?", "cannot be expressed exactly in binary"),
    ("What is the global interpreter lock?", "only one thread executes Python bytecode at a time"),
    ("Why are default values shared between objects?", "use None as the default value"),
    ("How do I copy an object?", "Assignment statements in Python do not copy objects"),
    ("How do I cancel a task in asyncio?", "use the cancel() method"),
    ("Why is there no goto?", "structured goto"),
]

HOSTILE = {
    "empty": "",
    "white space": " \t\r\n ",
    "ten kilobytes of one word": "a" * 10_000,
    "ten kilobytes of words": "list tuple generator " * 500,
    "control characters": "\x00\x01\x1b[31m\x7f\u2028",
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "a lone surrogate": "\ud800",
    "marks of its own": "[1] [2] [99]",
    "right to left": "\u202e\u0645\u0631\u062d\u0628\u0627",
}


@pytest.fixture(scope="module")
def index() -> SearchIndex:
    return SearchIndex(load_passages())


def passage(text: str, *, section: str = "Section") -> Passage:
    return Passage("Document", section, f"https://docs.test/#{section}", text)


def test_the_corpus_holds_at_least_400_different_passages() -> None:
    passages = load_passages()
    assert len(passages) >= 400
    assert len({entry.text for entry in passages}) == len(passages)


def test_every_line_of_the_corpus_has_exactly_the_fields_of_a_passage() -> None:
    for line in CORPUS_PATH.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        assert set(fields) == {"document_name", "section", "url", "text"}
        assert all(isinstance(value, str) and value.strip() for value in fields.values())


def test_every_passage_is_whole_prose_of_40_to_120_words_from_the_python_documentation() -> None:
    for entry in load_passages():
        assert 40 <= len(entry.text.split()) <= 120, entry
        assert re.match(r"https://docs\.python\.org/3/[\w./-]+\.html#\S+$", entry.url), entry
        assert re.search(r"[.!?][\"'\u201d\u2019)]*$", entry.text), entry
        assert ">>>" not in entry.text, entry
        assert "\u00b6" not in entry.text, entry


@pytest.mark.parametrize(("question", "fact"), QUESTIONS)
def test_a_question_is_answered_with_the_fact_it_asks_for(
    index: SearchIndex,
    question: str,
    fact: str,
) -> None:
    assert fact.casefold() in index.answer(question).text.casefold()


@pytest.mark.parametrize("question", [question for question, _ in QUESTIONS])
def test_an_answer_has_two_to_five_sentences_each_followed_by_its_mark(
    index: SearchIndex,
    question: str,
) -> None:
    text = index.answer(question).text
    sentences = [part.strip() for part in MARK.split(text)[::2]]
    assert sentences.pop() == ""
    assert 2 <= len(sentences) <= 5
    corpus = {sentence for entry in load_passages() for sentence in split_sentences(entry.text)}
    assert set(sentences) <= corpus


@pytest.mark.parametrize("question", [question for question, _ in QUESTIONS])
def test_marks_and_citations_name_the_same_numbers_in_the_same_order(
    index: SearchIndex,
    question: str,
) -> None:
    answer = index.answer(question)
    marked = list(dict.fromkeys(int(number) for number in MARK.findall(answer.text)))
    assert [citation.number for citation in answer.citations] == marked
    assert marked == list(range(1, len(marked) + 1))


def test_a_citation_quotes_its_passage_and_ends_at_a_word(index: SearchIndex) -> None:
    texts = [entry.text for entry in load_passages()]
    for citation in index.answer("What is a generator?").citations:
        beginning = citation.excerpt.removesuffix(" \u2026")
        assert len(citation.excerpt) <= 200
        assert any(text == beginning or text.startswith(f"{beginning} ") for text in texts)


def test_citations_are_read_from_the_marks_of_the_text_alone() -> None:
    sources = {1: passage("One."), 2: passage("Two."), 3: passage("Three.")}
    citations = find_citations("Three. [3] One. [1] Three again. [3] Unknown. [7]", sources)
    assert [(citation.number, citation.excerpt) for citation in citations] == [
        (3, "Three."),
        (1, "One."),
    ]


def test_a_sentence_that_contains_a_mark_of_its_own_is_not_quoted() -> None:
    index = SearchIndex(
        [passage("Zebras index stripes[1] quickly. Zebras are striped animals."), passage("Cats.")],
    )
    assert index.answer("zebras").text == "Zebras are striped animals. [1]"


def test_a_sentence_that_refers_to_the_one_before_is_quoted_with_it() -> None:
    index = SearchIndex(
        [passage("A lion sleeps. It dreams of zebras. A cat does not."), passage("Dogs.")],
    )
    assert index.answer("zebras").text == "A lion sleeps. [1] It dreams of zebras. [1]"


def test_results_are_ranked_and_have_positive_scores(index: SearchIndex) -> None:
    results = index.answer("How do I cancel a task in asyncio?").results
    scores = [hit.score for hit in results]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0
    assert all(hit.document_name and hit.section and hit.url and hit.excerpt for hit in results)


def test_confidence_is_between_0_and_100_and_falls_with_each_unknown_word(
    index: SearchIndex,
) -> None:
    questions = ["global interpreter lock", "global interpreter lock zyzzyva"]
    sure, unsure = (index.answer(question).confidence_score for question in questions)
    assert 0 < unsure < sure <= 100


@pytest.mark.parametrize(
    "question",
    ["xyzzy plugh", "What is it?", "What is the capital of France?", "The best pizza in Naples"],
)
def test_a_question_that_the_corpus_does_not_answer_has_one_sentence_without_marks(
    index: SearchIndex,
    question: str,
) -> None:
    answer = index.answer(question)
    assert answer.text == NOTHING_FOUND
    assert answer.citations == ()
    assert answer.confidence_score == 0


@pytest.mark.parametrize("question", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_input_is_answered_without_an_error(index: SearchIndex, question: str) -> None:
    answer = index.answer(question)
    assert answer.text
    assert "".join(split_tokens(answer.text)) == answer.text


@pytest.mark.parametrize(
    "text",
    ["", " ", "one", " one  two ", "line\nbreak [1]", "Sentence. [1] Another. [2]"],
)
def test_tokens_concatenate_to_exactly_the_text(text: str) -> None:
    assert "".join(split_tokens(text)) == text


def test_tokens_are_single_words() -> None:
    assert split_tokens("Lists are mutable. [1]") == ["Lists ", "are ", "mutable. ", "[1]"]


def test_sentences_do_not_end_at_an_abbreviation() -> None:
    text = "Use a list, e.g. A or B. Then stop (really!) Now."
    assert split_sentences(text) == ["Use a list, e.g. A or B.", "Then stop (really!)", "Now."]


def test_indexing_and_answering_print_nothing_and_keep_the_library_out_of_the_log() -> None:
    program = (
        "import logging; logging.basicConfig(level=logging.DEBUG)\n"
        "from example_app.search import SearchIndex, load_passages\n"
        "SearchIndex(load_passages()).answer('What is a generator?')\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
    )
    assert finished.stdout == ""
    assert "bm25s" not in finished.stderr
