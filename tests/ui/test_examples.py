"""From examples to descriptions, without a browser."""

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

import app
import hyperlora
from hyperlora.endpoint import Host
from hyperlora.errors import UserError
from hyperlora.model import Model
from hyperlora.suggest import suggest
from hyperlora.table import Table
from hyperlora.ui.examples import COUNT, SHOWN, Examples, read_pairs
from hyperlora.ui.page import build_page
from tests.training.test_descriptions import Endpoint
from tests.ui.test_file import VISITOR, given
from tests.ui.visitor import wait_until

PAIRS = [(word, word[0]) for word in ("house", "garden", "tree", "boat", "window", "mill", "road")]


@pytest.fixture(scope="module")
def mini() -> Iterator[hyperlora.Pipeline]:
    pipe = hyperlora.pipeline("mini")
    yield pipe
    pipe.close()


def examples_of(pipe: hyperlora.Pipeline, host: Host | None = None) -> Examples:
    model = Model(lambda: pipe)
    model.start()
    wait_until(lambda: model.settled)
    return Examples(model, host)


@pytest.fixture
def on(mini: hyperlora.Pipeline) -> Examples:
    return examples_of(mini)


def lines(pairs: list[tuple[str, str]]) -> str:
    """Examples as they are pasted."""
    return given("\n".join(map(" => ".join, pairs)).encode(), "")


def test_the_best_descriptions_come_and_are_tried_on_what_was_held_out(
    on: Examples, mini: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []  # examples that descriptions were ranked by

    def record(pipe: hyperlora.Pipeline, examples: list[tuple[str, str]], *options: object) -> Iterator:
        seen.extend(examples)
        return suggest(pipe, examples, *options)

    monkeypatch.setattr("hyperlora.suggest.suggest", record)
    first, *_, last = map(json.loads, on.find(lines(PAIRS), VISITOR))
    assert 0 < len(first["found"]) <= COUNT and "marks" not in first["found"][0]
    assert last["end"] == "done" and last["held"] and len(last["found"]) == COUNT and on._runs == {}
    likelihoods = [each["likelihood"] for each in last["found"]]
    assert likelihoods == sorted(likelihoods, reverse=True) and likelihoods[0] > first["found"][0]["likelihood"] > 0
    held = [pair for pair in PAIRS if pair not in seen]
    assert len(seen) == 4 and len(held) == 3
    for each in last["found"]:
        answers = mini.chat_batch([question for question, _ in held], [mini.adapt(each["description"])] * 3)
        right = [answer == output for answer, (_, output) in zip(answers, held, strict=True)]
        assert [tuple(mark) for mark in each["marks"]] == [
            (question, answer[:SHOWN], output, correct)
            for (question, output), answer, correct in zip(held, answers, right, strict=True)
        ]
    assert all(mark[3] for mark in last["found"][0]["marks"])


def test_few_examples_are_all_shown_and_tried(on: Examples) -> None:
    *_, last = map(json.loads, on.find(lines(PAIRS[:2]), VISITOR))
    assert not last["held"] and [mark[0] for mark in last["found"][0]["marks"]] == ["house", "garden"]


@pytest.mark.parametrize("tried", [False, True])
def test_a_search_is_stopped_and_keeps_what_is_found(on: Examples, mini: hyperlora.Pipeline, tried: bool) -> None:
    search = on.find(lines(PAIRS), VISITOR)
    while "marks" not in next(search) and tried:
        pass
    asyncio.run(on.stop(VISITOR))
    *_, last = map(json.loads, search)
    assert last["end"] == "stopped" and last["found"] and on._runs == {}
    assert any("marks" in each for each in last["found"]) == tried
    wait_until(lambda: not mini.engine._batch.rows)


def test_a_stop_while_the_answers_are_written_ends_them(on: Examples, mini: hyperlora.Pipeline) -> None:
    choose = mini.engine._choose

    def stop(*args: object) -> object:
        asyncio.run(on.stop(VISITOR))
        return choose(*args)

    mini.engine._choose = stop
    try:
        *_, last = map(json.loads, on.find(lines(PAIRS), VISITOR))
    finally:
        del mini.engine._choose
    assert last["end"] == "stopped" and not any("marks" in each for each in last["found"])


def test_one_search_for_each_visitor(on: Examples) -> None:
    first = on.find(lines(PAIRS), VISITOR)
    next(first)
    assert "runs already" in json.loads(next(on.find(lines(PAIRS), VISITOR)))["error"]
    other = on.find(lines(PAIRS), SimpleNamespace(session_hash="b"))
    assert "error" not in json.loads(next(other))
    first.close()
    other.close()
    assert on._runs == {}


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (lines(PAIRS[:1]), "Give 2 to 20 examples: there are 1."),
        (lines(PAIRS * 3), "Give 2 to 20 examples: there are 21."),
        (given(b"one\ntwo", ""), "put a tab or “ => ” between"),
        (given(b"input,output\na,b\nc,\n"), "Example 2 has no output"),
        (given(b"input,output\n ,b\nc,d\n"), "Example 1 has no input"),
        (given(b"input\n" + b"a\n" * 1_000_000), "more than 10,000 rows"),
        (given(bytes(range(256))), "no text in UTF-8"),
        (given(b"", ""), "has no rows"),
        (lines([("x" * 9000, "a"), ("b", "c")]), "Example 1 has more than 2,000 characters"),
        (None, "is damaged"),
    ],
)
def test_examples_that_are_none_say_why(on: Examples, file: object, sentence: str) -> None:
    *_, last = map(json.loads, on.find(file, VISITOR))
    assert sentence in last["error"] and on._runs == {}


def test_without_training_descriptions_that_is_said(
    on: Examples, mini: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mini.hyperlora, "descriptions", [])
    [text] = on.find(lines(PAIRS), VISITOR)
    assert "without the descriptions that it was trained with" in json.loads(text)["error"]


def test_a_model_that_chats_is_asked_too(mini: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the examples that are not held out, and without an adapter; also for a hypernetwork without descriptions."""
    good, asked, chat = ["Write the first letter of the word.", "Write how the word begins."], [], mini.chat

    def answer(messages: list[dict[str, str]], adapter: object = None, **options: object) -> object:
        asked.append((messages, adapter, options["max_new_tokens"]))
        stream = chat("a", stream=True)
        "".join(stream)
        stream.text = "\n".join(f"Description {i}: {text}" for i, text in enumerate(good, 1))
        return stream

    monkeypatch.setattr(mini, "multi_turn", True)
    monkeypatch.setattr(mini, "chat", answer)
    for source in ("_alike", "_spread"):
        monkeypatch.setattr(f"hyperlora.suggest.{source}", lambda *_: [])
    monkeypatch.setattr(mini.hyperlora, "descriptions", [])
    *_, last = map(json.loads, examples_of(mini).find(lines(PAIRS), VISITOR))
    assert {each["description"] for each in last["found"]} == set(good) and last["notice"] == ""
    [(messages, adapter, most)] = asked
    assert adapter is None and most == 300
    assert sum(f"Question:\n{word}\nAnswer:" in messages[-1]["content"] for word, _ in PAIRS) == 4


def test_a_model_whose_context_is_too_short_is_not_asked(
    mini: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mini, "multi_turn", True)
    monkeypatch.setattr("hyperlora.suggest._spread", lambda *_: [])
    *_, last = map(json.loads, examples_of(mini).find(lines(PAIRS), VISITOR))
    assert last["end"] == "done" and len(last["found"]) == COUNT and last["notice"] == ""


def lines_to_ask(ask: bool) -> str:
    return json.dumps(json.loads(lines(PAIRS)) | {"ask": ask})


@pytest.mark.parametrize("agreed", [True, False])
def test_a_host_is_asked_where_the_visitor_agrees_and_its_descriptions_are_tried_too(
    mini: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch, agreed: bool
) -> None:
    """Also by a hypernetwork that came without descriptions."""
    good = ["Write the first letter of the word.", "<b>Write its beginning.</b>"]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr("hyperlora.suggest._alike", lambda *_: [])
    monkeypatch.setattr("hyperlora.suggest._spread", lambda *_: [])
    monkeypatch.setattr(mini.hyperlora, "descriptions", [])
    server = Endpoint()
    server.answer = lambda body: json.dumps(good)
    try:
        on = examples_of(mini, Host(url=server.url, model="m"))
        *_, last = map(json.loads, on.find(lines_to_ask(agreed), VISITOR))
    finally:
        server.close()
    assert len(server.requests) == agreed
    if not agreed:
        assert "without the descriptions" in last["error"]
        return
    assert {each["description"] for each in last["found"]} == set(good) and last["notice"] == ""
    [(_, authorization, body)] = server.requests
    asked = body["messages"][-1]["content"]
    assert authorization == "Bearer secret" and "Reply with 10 descriptions" in asked
    assert sum(f"Question:\n{word}\nAnswer:" in asked for word, _ in PAIRS) == 4  # none that is held out


def test_a_host_that_cannot_be_asked_is_said_and_costs_nothing_else(
    mini: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hyperlora.suggest._spread", lambda *_: [])
    on = examples_of(mini, Host(url="http://127.0.0.1:9/v1", model="m", retries=0))
    *_, last = map(json.loads, on.find(lines_to_ask(True), VISITOR))
    assert last["end"] == "done" and len(last["found"]) == COUNT
    assert last["notice"] == "127.0.0.1 could not be asked; the server's log says why."
    assert "did not answer" in caplog.text


def test_the_page_names_the_host_and_never_its_key(mini: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    url = "https://example.org/private/v1"
    for host, there in ((Host(url=url, model="m"), True), (None, False)):
        config = json.dumps(build_page(Model(lambda: mini), host).get_config_file())
        assert ("Ask example.org for descriptions too: the examples are sent there" in config) is there
        assert "sk-secret" not in config and "/private" not in config


def test_an_endpoint_is_named_whole_or_not_at_all() -> None:
    given = ["--describe_endpoint", "http://localhost:1/v1"]
    assert app.describing(app.parse_arguments([])) is None
    assert app.describing(app.parse_arguments([*given, "--describe_model", "m"])).name == "localhost"
    with pytest.raises(UserError, match="go together"):
        app.describing(app.parse_arguments(given))
    with pytest.raises(UserError, match="url must be an address"):
        app.describing(app.parse_arguments(["--describe_endpoint", "localhost", "--describe_model", "m"]))


def test_the_sides_of_a_table_are_known_by_their_names() -> None:
    table = Table(["n", "label", "text"], [["1", "x", "a"], ["2", "y", "b"]])
    assert read_pairs(table) == [("a", "x"), ("b", "y")]
    with pytest.raises(UserError, match="An example is an input and its output"):
        read_pairs(Table(["a", "b", "c"], [["1", "2", "3"]] * 2))
