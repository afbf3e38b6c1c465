"""The page without a browser: its handlers on a tiny model, and the server with concurrent clients."""

import asyncio
import email
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from html import escape, unescape
from html.parser import HTMLParser
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
import torch
from gradio_client import Client

import app
import hyperlora
from hyperlora.config import MAX_ZIP
from hyperlora.errors import UserError
from hyperlora.hub import Cancelled
from hyperlora.model import MAX_ADAPTERS, Model
from hyperlora.presets import PRESETS, Preset, assets_dir
from hyperlora.recipe import Recipe
from hyperlora.ui.compare import Compare
from hyperlora.ui.handlers import SKIP, Handlers, about, bubbles, progress
from hyperlora.ui.markdown import COPY, to_html
from hyperlora.ui.page import build_page, launch
from hyperlora.ui.session import (
    MAX_CHARACTERS,
    MAX_NAME,
    MAX_TURNS,
    Shelved,
    Turn,
    read_adapter,
    read_turns,
)
from tests.ui.visitor import (
    ADD,
    REVERSE,
    Visitor,
    ask_server,
    by_line,
    serving,
    shelved,
    side,
    slow,
    text_of,
    wait_until,
    written,
)

ROOT = Path(__file__).parents[2]


# ---- descriptions and the shelf ----


def test_generate_says_how_long_it_took_and_what_was_made(on: Handlers) -> None:
    status, made = on.generate(f"7   {REVERSE}\n")
    assert re.search(r"Made in \d+ ms\.", status)
    assert made == f"7 {REVERSE}"
    assert on.generate(f"8 {REVERSE}") == ('<span class="done">Ready.</span>', f"8 {REVERSE}")


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ("", "The description is empty"),
        ("  \n ", "The description is empty"),
        ("🎈🎈", "The description has no letter or digit"),
        ("word " * 2000, "characters; the limit is 2,000"),
        ("half \ud83d", "The description holds"),
        (None, "The description must be text"),
        (["a"], "The description must be text"),
    ],
)
def test_a_bad_description_gets_a_sentence_and_no_adapter(on: Handlers, description: object, sentence: str) -> None:
    status, made = on.generate(f"3 {description}" if isinstance(description, str) else description)
    assert sentence in status
    assert made.removeprefix("3") == " "


def test_the_notice_of_a_far_description_is_shown_then_and_when_it_is_selected_again(
    on: Handlers, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = pipe.adapt("Qwzx.")
    adapter.notice = "This is <far> away."
    monkeypatch.setattr(pipe, "adapt", lambda text: adapter)
    status, _ = on.generate("1 Qwzx far.")
    assert "This is &lt;far&gt; away." in status
    assert "This is &lt;far&gt; away." in on.select(shelved("Qwzx far.", "Mine"))
    assert on.select("") == ""


def test_adapters_are_kept_in_a_bounded_memory_and_come_back_the_same(pipe: hyperlora.Pipeline) -> None:
    model = Model(lambda: pipe)
    model.start()
    wait_until(lambda: model.settled)
    first = model.adapter(Recipe("Task."))
    assert model.adapter(Recipe("Task.")) is first
    for i in range(MAX_ADAPTERS):
        model.adapter(Recipe(f"Task {i}."))
    assert not model.has(Recipe("Task."))
    again = model.adapter(Recipe("Task."))
    assert again is not first
    for module, (a, b) in first.weights.items():
        assert torch.equal(a, again.weights[module][0])
        assert torch.equal(b, again.weights[module][1])


def test_whoever_asks_for_an_adapter_that_is_being_made_gets_that_one(
    model: Model, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, asked, real = threading.Event(), [], pipe.adapt

    def adapt(text: str) -> object:
        asked.append(text)
        assert go.wait(300)
        return real(text)

    monkeypatch.setattr(pipe, "adapt", adapt)
    with ThreadPoolExecutor() as pool:
        made = [pool.submit(model.adapter, Recipe("Wait for it.")) for _ in range(4)]
        wait_until(lambda: asked)
        go.set()
        assert len({id(future.result()) for future in made}) == 1
    assert asked == ["Wait for it."]


def test_a_description_that_failed_is_tried_again(
    model: Model, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "adapt", lambda text: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.adapter(Recipe("Fail once."))
    assert model.adapter(Recipe("Fail once.")).description == "Fail once."


# ---- what the page holds ----


def test_what_the_page_holds_is_shown_again_by_a_server_that_knows_nothing_of_it(on: Handlers) -> None:
    turns = [Turn("<b>", ADD, "  1\n", "stop"), Turn("two", "No adapter", "2", "length")]
    chat, retry, undo, clear = on.show(written(turns))
    assert chat == bubbles(turns)
    assert all(button.interactive for button in (retry, undo, clear))
    chat, *buttons = on.show("")
    assert chat == [] and not any(button.interactive for button in buttons)
    with pytest.warns(UserWarning, match="What the page kept"):
        assert on.show("{}")[0] == []


@pytest.mark.parametrize(
    "kept",
    [None, 3, ["a"], "[", "3", "{}", "[" * 100_000, "[1]", '["\\ud83d"]', '[{"question": "a"}]', "9" * 10_000],
    ids=lambda kept: repr(kept)[:20],
)
def test_what_no_page_holds_is_one_sentence(on: Handlers, kept: object) -> None:
    with pytest.raises(UserError, match=r"^What the page kept .*[.]$"):
        read_turns(kept)
    with pytest.warns(UserWarning, match="What the page kept"):
        assert list(on.send("7", "", False, kept, "", "one", SimpleNamespace(session_hash="a"))) == [SKIP]
    if kept != "{}":  # an adapter without a description
        with pytest.raises(UserError, match=r"^What the page kept .*[.]$"):
            read_adapter(kept)
        assert "What the page kept" in on.select(kept)


def test_an_adapter_of_the_shelf_is_a_description_with_a_name_and_a_strength() -> None:
    assert read_adapter("") is None
    assert read_adapter(shelved(f" {ADD}\n")) == Shelved(Recipe(ADD), ADD, 1)
    assert read_adapter(shelved(ADD, " My\n sums ", 0.5)) == Shelved(Recipe(ADD), "My sums", 0.5)
    for name in (None, 3, ["a"], "\ud83d", "a" * (MAX_NAME + 1)):
        with pytest.raises(UserError, match=r"^What the page kept .*[.]$"):
            read_adapter(shelved(ADD, name))
    with pytest.raises(UserError, match="The description must be text"):
        read_adapter("{}")


@pytest.mark.parametrize("text", ["", " \t", "a\r\nb", '"\\"', "\x00\u2028\ue000", "😀"])
def test_what_the_page_holds_comes_back_as_it_was(text: str) -> None:
    turns = [Turn(text, text, text, text, id=text), Turn("a", "b")]
    assert read_turns(written(turns)) == turns


def test_a_long_conversation_keeps_its_end() -> None:
    turns = [Turn(str(i), "No adapter") for i in range(MAX_TURNS + 5)]
    assert read_turns(written(turns)) == turns[5:]
    long = [Turn("a" * (MAX_CHARACTERS // 2), str(i)) for i in range(4)]
    assert read_turns(written(long)) == long[2:]
    assert read_turns(written([Turn("a" * MAX_CHARACTERS, "", "b")])) == [Turn("a" * MAX_CHARACTERS, "", "b")]


# ---- the chat ----


def test_each_answer_is_the_selected_adapters_and_says_so(visitor: Visitor, pipe: hyperlora.Pipeline) -> None:
    for chosen, adapter, by in (
        (REVERSE, pipe.adapt(REVERSE), REVERSE),
        ("", None, "No adapter"),
        (ADD, pipe.adapt(ADD), ADD),
        (REVERSE, pipe.adapt(REVERSE), REVERSE),
    ):
        visitor.conversation = []
        assert visitor.ask("one two", chosen) == (pipe.chat("one two", adapter=adapter), by)


def test_a_message_for_an_adapter_that_is_not_there_yet_waits_for_it_and_says_so(
    visitor: Visitor, pipe: hyperlora.Pipeline
) -> None:
    new = "A description\n that was never made."
    waiting, begun, *_ = visitor.hear(visitor.on.send(*visitor.asked(new), "one two", visitor.request))
    assert waiting[2].submit_btn == "Waiting for the adapter…" and not waiting[2].interactive
    assert begun[2].value == "" and begun[2].interactive
    assert begun[-1] == about(pipe)
    (turn,) = visitor.conversation
    assert turn.by == "A description that was never made." and turn.id == "7"
    assert turn.answer == pipe.chat("one two", adapter=pipe.adapt(turn.by))


def test_a_message_for_an_adapter_that_cannot_be_is_not_sent(visitor: Visitor) -> None:
    for chosen in ("🎈", "word " * 2000, "\ud83d", 3):
        with pytest.warns(UserWarning, match="The description"):
            *_, last = visitor.hear(visitor.on.send(*visitor.asked(chosen), "one two", visitor.request))
        assert visitor.conversation == []
        assert last[2] == gr.skip() or (last[2].interactive and "value" not in last[2].constructor_args)


def test_earlier_turns_are_part_of_the_conversation(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    visitor = Visitor(on, [Turn("one", "No adapter", "two")])
    conversation = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    assert visitor.ask("three")[0] == pipe.chat(conversation)


def test_strength_scales_the_adapter_and_is_named(visitor: Visitor, pipe: hyperlora.Pipeline) -> None:
    visitor.strength = 0.5
    half = visitor.ask("one two", REVERSE)
    assert half == (pipe.chat("one two", adapter=pipe.adapt(REVERSE).scaled(0.5)), f"{REVERSE} · strength 0.5")
    visitor.conversation, visitor.strength = [], 0
    assert visitor.ask("one two", REVERSE)[0] == pipe.chat("one two")
    visitor.conversation, visitor.strength = [], -2.5
    assert visitor.ask("one two", REVERSE)[0] == pipe.chat("one two", adapter=pipe.adapt(REVERSE).scaled(-2.5))


@pytest.mark.parametrize("strength", [-4, -1.5, 0, 0.4, 2.2, 4])
def test_a_strength_beyond_what_was_trained_is_said(
    on: Handlers, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch, strength: float
) -> None:
    norm = pipe.adapt(REVERSE).norm()
    monkeypatch.setattr(pipe.hyperlora.config, "norm_range", (0.5 * norm, 2 * norm))
    said = on.select(shelved(REVERSE, "", strength))
    assert ("‖ΔW‖" in said) == (not 0.5 <= abs(strength) <= 2)
    assert ("may fall apart" in said) == (abs(strength) > 2)
    assert "‖ΔW‖" not in on.generate(f"1 {REVERSE}")[0]


@pytest.mark.parametrize("strength", [-4.1, 4.1, float("nan"), float("inf"), "1", None, True, [1]])
def test_a_strength_that_is_none_is_one_sentence(visitor: Visitor, strength: object) -> None:
    visitor.strength = strength
    with pytest.warns(UserWarning, match="The strength must be a number from -4 to 4"):
        visitor.hear(visitor.on.send(*visitor.asked(ADD), "one", visitor.request))


def test_the_description_is_put_in_the_prompt_and_that_is_said(visitor: Visitor, pipe: hyperlora.Pipeline) -> None:
    described = pipe.chat("one two", adapter=pipe.adapt(REVERSE), describe=True)
    assert described != pipe.chat("one two", adapter=pipe.adapt(REVERSE))
    visitor.describe = True
    assert visitor.ask("one two", REVERSE) == (described, f"{REVERSE} · description in the prompt")
    visitor.strength = 0.5
    visitor.hear(visitor.on.retry(*visitor.asked(REVERSE), visitor.request), again=True)
    assert visitor.conversation[0].by == f"{REVERSE} · strength 0.5 · description in the prompt"
    visitor.conversation = []
    assert visitor.ask("one two") == (pipe.chat("one two"), "No adapter")


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("", "The message is empty"),
        ("   ", "The message is empty"),
        ("a" * 1_000_001, "characters"),
        ("a" * 500, "tokens"),
        ("half \ude00", "The message holds"),
        (b"caf\xe9".decode(errors="surrogateescape"), "The message holds"),
        (7, "The message must be text"),
        ({"a": 1}, "The message must be text"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_bad_message_gets_a_sentence_and_changes_nothing(on: Handlers, message: object, sentence: str) -> None:
    visitor = Visitor(on, [Turn("one", "No adapter", "two", "stop")])
    with pytest.warns(UserWarning, match=sentence):
        assert visitor.hear(on.send(*visitor.asked(""), message, visitor.request)) == [SKIP]


def test_an_answer_can_be_stopped_before_its_first_token_and_later(visitor: Visitor, pipe: hyperlora.Pipeline) -> None:
    whole = pipe.chat("one two")
    with slow(pipe, 0.05):
        for drawn in (1, 2):  # the message is on the page and nothing has come yet; then something has
            answer = visitor.on.send(*visitor.asked(""), "one two", visitor.request)
            for _ in range(drawn):
                next(answer)
            asyncio.run(visitor.on.stop(visitor.request))
            visitor.hear(answer)
    first, second = visitor.conversation
    assert len(first.answer) <= 1
    assert second.answer and second.answer != whole
    assert first.end == second.end == "stopped"
    asyncio.run(visitor.on.stop(visitor.request))  # nothing is being written any more


def test_one_answer_at_a_time_for_each_visitor(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    visitor, other = Visitor(on, [Turn("one", "No adapter", "two")]), Visitor(on, session_hash="other")
    with slow(pipe, 0.05):
        answer = on.send(*visitor.asked(""), "three", visitor.request)
        next(answer)
        for late in (
            on.send(*visitor.asked(""), "four", visitor.request),
            on.retry(*visitor.asked(""), visitor.request),
        ):
            with pytest.warns(UserWarning, match="still being answered"):
                assert list(late) == [SKIP]
        next(on.send(*other.asked(""), "four", other.request))
        answer.close()  # what Gradio does when the visitor has gone
    visitor.ask("five")
    assert [turn.question for turn in visitor.conversation] == ["one", "five"]


def test_of_many_messages_at_the_same_moment_one_is_answered(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    visitor, together, said = Visitor(on), threading.Barrier(8), []
    release = threading.Event()
    hook = pipe.adapted.model.register_forward_pre_hook(lambda *_: release.wait(300) and None)

    def send() -> int:
        answer = on.send(*visitor.asked(""), "one", visitor.request)
        together.wait(300)
        given = next(answer)
        said.append(given)
        if given == SKIP:
            return 0
        wait_until(lambda: len(said) == 8)
        release.set()
        return len(list(answer))

    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("ignore")
        counts = [future.result() for future in [pool.submit(send) for _ in range(8)]]
    hook.remove()
    assert sum(count > 0 for count in counts) == 1


def test_retry_asks_again_of_the_adapter_that_is_selected_now(visitor: Visitor, pipe: hyperlora.Pipeline) -> None:
    base, _ = visitor.ask("one two")
    *_, (chat, *_) = visitor.hear(visitor.on.retry(*visitor.asked(REVERSE), visitor.request), again=True)
    (turn,) = visitor.conversation
    assert turn.by == REVERSE
    assert turn.answer == pipe.chat("one two", adapter=pipe.adapt(REVERSE)) != base
    assert chat == bubbles([turn])
    visitor.conversation = []
    with pytest.warns(UserWarning, match="no message to ask again"):
        assert list(visitor.on.retry(*visitor.asked(""), visitor.request)) == [SKIP]


def test_a_retry_that_fails_keeps_the_turn(on: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = Visitor(on, [Turn("one", "No adapter", "two", "stop")])
    monkeypatch.setattr(on.model.pipe, "chat", lambda *_, **__: 1 / 0)
    with pytest.warns(UserWarning, match="Something went wrong on the server"):
        assert visitor.hear(on.retry(*visitor.asked(""), visitor.request)) == [SKIP]
    with pytest.warns(UserWarning, match="Something went wrong on the server"):
        *_, last = visitor.hear(on.retry(*visitor.asked("Never made before."), visitor.request))
    assert last[:2] == SKIP[:2] and all(button.interactive for button in last[3:6])


def test_an_error_while_an_answer_is_written_ends_that_answer_only(
    on: Handlers, visitor: Visitor, pipe: hyperlora.Pipeline
) -> None:
    hook = pipe.adapted.model.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        with pytest.warns(UserWarning, match="Something went wrong on the server"):
            visitor.ask("one two")
    finally:
        hook.remove()
    assert visitor.conversation[0].end == "error"
    assert Visitor(on).ask("five")[0] == pipe.chat("five")


@pytest.mark.parametrize(
    ("end", "by"),
    [
        ("stop", "No adapter"),
        ("length", "No adapter · cut off at the token limit"),
        ("stopped", "No adapter · stopped"),
    ],
)
def test_an_answer_that_is_not_whole_says_why(
    visitor: Visitor, answering: Callable[..., None], end: str, by: str
) -> None:
    answering("one ", "two", end=end)
    *_, (chat, *_) = visitor.hear(visitor.on.send(*visitor.asked(""), "go on", visitor.request))
    assert (chat[-1]["content"][0]["text"], by_line(chat[-1])) == ("one two", by)
    assert visitor.conversation[-1].end == end


def test_an_answer_of_which_the_end_never_came_says_so() -> None:
    turns = [Turn("one", ADD, "1", "stop"), Turn("two", ADD)]
    for busy, answer, by in ((False, "(no text)", f"{ADD} · interrupted"), (True, "…", ADD)):
        bubble = bubbles(turns, busy)[-1]
        assert (bubble["content"][0]["text"], by_line(bubble)) == (answer, by)


def test_text_is_shown_as_it_is() -> None:
    """But for the answers of models that write Markdown."""
    texts = ["<b>a</b>", "    if x:\n\ty", "\n\n a \n\n", "&lt; <script>", "a\r\nb"]
    for text in texts:
        question, answer = bubbles([Turn(text, text, text, "stop")])
        for part in (*question["content"], answer["content"][0]):
            assert part["type"] == "text" and "<" not in part["text"] and unescape(part["text"]) == text
        assert by_line(answer) == text
        # Through Gradio's own component, which takes the indentation from plain strings.
        root = gr.Chatbot().postprocess([question, answer]).root
        assert [unescape(message.content[0].text) for message in root] == [text] * 2


def test_answers_in_markdown_are_html_and_nothing_else_is() -> None:
    text = "**a** <b>\n```py\nif x:\n\n    y\n```"
    question, answer = bubbles([Turn(text, text, text, "stop", markdown=True)])
    html = (
        '<div class="markdown"><p><strong>a</strong> &lt;b&gt;</p>\n'
        f'<div class="code">{COPY}<pre><code class="language-py">if x:\n\n    y\n</code></pre>\n</div></div>'
    )
    assert (answer["content"][0]["text"], by_line(answer)) == (html, text)
    assert [part["text"] for part in question["content"]] == [escape(text)]
    for blank in ("", " \n"):
        assert bubbles([Turn("a", "b", blank, "stop", markdown=True)])[1]["content"][0]["text"] == "(no text)"
    kept = written([Turn("a", "b", text, "stop", markdown=True)])
    assert bubbles(read_turns(kept)) == bubbles([Turn("a", "b", text, "stop", markdown=True)])
    assert bubbles(read_turns(kept.replace("true", '"<b>"')))[1]["content"][0]["text"] == escape(text)


APART = 'target="_blank" rel="noopener noreferrer"'
TAGS = {"button", "div", "p", "br", "a", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "blockquote"}


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("a\nb", "<p>a<br>\nb</p>"),
        ("<img src=x onerror=alert(1)>", "<p>&lt;img src=x onerror=alert(1)&gt;</p>"),
        ("![a](http://a.b/c.png)", f'<p>!<a href="http://a.b/c.png" {APART}>a</a></p>'),
        ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
        ("[a](data:image/png;base64,AA)", None),
        ("![a](data:text/html,<script>)", None),
        ("```<b\nx", f'<div class="code">{COPY}<pre><code class="language-&lt;b">x</code></pre>\n</div>'),
        ('[a](http://b "c\\" onclick=d")', f'<p><a href="http://b" title="c&quot; onclick=d" {APART}>a</a></p>'),
        ("| a |\n| - |\n| <i> |", None),
        ("> " * 5000 + "a", None),
    ],
)
def test_markdown_has_no_html_and_loads_nothing(markdown: str, html: str | None) -> None:
    found = to_html(markdown)
    assert html is None or found == f'<div class="markdown">{html}</div>'
    parser, tags = HTMLParser(), []
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(found)
    assert {tag for tag, _ in tags} <= TAGS
    for _, attributes in tags:
        assert attributes.keys() <= {"class", "href", "title", "target", "rel", "type"}
        assert attributes.get("href", "http://").startswith(("http://", "data:image/"))
    assert to_html("a" * 50_001) is None


# ---- links ----


@pytest.mark.parametrize("strength", [1, -0.5, 4])
def test_a_link_is_to_the_adapter_that_was_shared(on: Handlers, pipe: hyperlora.Pipeline, strength: float) -> None:
    link = json.loads(on.share(shelved(REVERSE, "Mine", strength)))["link"]
    assert Recipe.from_link(link, pipe.hyperlora.checkpoint) == Recipe(REVERSE, strength=strength)
    assert json.loads(on.open_link(link)) == {"description": REVERSE, "strength": strength}


def test_a_link_to_a_blend_says_what_it_is_of(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    recipe = {"blend": [[0.5, {"description": ADD}], [-1, {"description": REVERSE}]], "strength": 2}
    shared = json.dumps({"name": "Mine", "description": "a", "strength": 2, "recipe": recipe})
    found = json.loads(on.open_link(json.loads(on.share(shared))["link"]))
    assert found == {"description": f"2 * (0.5 * “{ADD}” + -1 * “{REVERSE}”)", "recipe": recipe}


def test_what_cannot_be_shared_or_opened_says_why(on: Handlers, pipe: hyperlora.Pipeline) -> None:
    here = pipe.hyperlora.checkpoint
    for asked, given, sentence in (
        (on.share, "", "Select an adapter first"),
        (on.share, "{", "is damaged"),
        (on.share, shelved("a " * 900), "shorten"),
        (on.open_link, None, "must be text"),
        (on.open_link, "#adapter=" + "A" * 9000, "longer than 2,048"),
        (on.open_link, "#adapter=%3Cscript%3E", "The link is damaged"),
        (on.open_link, Recipe(REVERSE).link("0" * 12), "for the checkpoint 000000000000"),
        (on.open_link, Recipe(upload="0" * 64).link(here), "ask for its zip"),
        (on.share, json.dumps({"name": "", "description": "a", "strength": 1, "recipe": {"upload": "0" * 64}}), "zip"),
    ):
        assert sentence in json.loads(asked(given))["error"]


# ---- two answers to one message ----


@pytest.fixture
def compare(model: Model) -> Compare:
    return Compare(model)


def test_a_message_has_an_answer_of_each_side(compare: Compare, pipe: hyperlora.Pipeline) -> None:
    """With an adapter, without, and without but with the adapter's description in the prompt; both at the same time."""
    adapter, request = pipe.adapt(REVERSE), SimpleNamespace(session_hash="a")
    wanted = {
        side("left", shelved(REVERSE)): pipe.chat("one two", adapter),
        side("right", shelved(REVERSE, strength=0.5)): pipe.chat("one two", adapter.scaled(0.5)),
        side("right", shelved(REVERSE), describe=True): pipe.chat("one two", adapter, describe=True),
        side("left", shelved(REVERSE), prompted=True): pipe.chat(f"{REVERSE}\none two"),
        side("right"): pipe.chat("one two"),
    }
    answers = {asked: compare.answer(asked, "one two", 7, request) for asked in wanted}
    for asked, answer in answers.items():
        *_, last = answer
        [text] = re.findall('<div class="verbatim">(.*?)</div>', last, re.DOTALL)
        assert unescape(text) == wanted[asked]
    assert compare._streams == {}


def test_the_sides_of_a_round_begin_together(
    compare: Compare, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of several visitors do not meet; a side that comes late, or cannot be asked with the other, goes alone."""
    monkeypatch.setattr("hyperlora.ui.compare.MOMENT", 300)
    batches, submit = [], pipe._submit

    def counted(chats: list, *others: object) -> list:
        batches.append(len(chats))
        return submit(chats, *others)

    monkeypatch.setattr(pipe, "_submit", counted)
    answers = [
        compare.answer(
            side(which, shelved(REVERSE) if which == "left" else ""), message, 7, SimpleNamespace(session_hash=who)
        )
        for who, message in (("a", "one two"), ("b", "three"))
        for which in ("left", "right")
    ]
    with ThreadPoolExecutor() as pool:
        found = [last for *_, last in pool.map(list, answers)]
    assert batches == [2, 2] and compare._waiting == {}
    for html, message, adapter in zip(
        found, ("one two", "one two", "three", "three"), (pipe.adapt(REVERSE), None) * 2, strict=True
    ):
        assert text_of(unescape(html)).startswith(pipe.chat(message, adapter).strip())
    long, batches[:] = "word " * 5000, []
    pair = [compare.answer(side("left"), long, 8, SimpleNamespace(session_hash="a"))]
    pair.append(compare.answer(side("right"), "one two", 8, SimpleNamespace(session_hash="a")))
    with ThreadPoolExecutor() as pool:
        left, right = (last for *_, last in pool.map(list, pair))
    assert "shorten it" in left and text_of(unescape(right)).startswith(pipe.chat("one two").strip())
    monkeypatch.setattr("hyperlora.ui.compare.MOMENT", 0)
    batches[:] = []
    [*_, last] = compare.answer(side("left"), "one two", 9, SimpleNamespace(session_hash="a"))
    assert batches == [1] and text_of(unescape(last)).startswith(pipe.chat("one two").strip())


def test_both_sides_stop_together_and_say_so(compare: Compare, pipe: hyperlora.Pipeline) -> None:
    request = SimpleNamespace(session_hash="a")
    with slow(pipe, 0.05):
        answers = [compare.answer(side(which), "one two", 7, request) for which in ("left", "right")]
        for answer in answers:
            next(answer)
        asyncio.run(compare.stop(request))
        assert all("Stopped." in list(answer)[-1] for answer in answers)
    assert compare._streams == {}


@pytest.mark.parametrize(
    ("asked", "message", "seed", "sentence"),
    [
        (side("left"), " ", 7, "The message is empty"),
        (side("left"), None, 7, "The message must be text"),
        (side("left"), "a \ud83d", 7, "is half a character"),
        (side("left", shelved("a \udfff")), "a", 7, "is half a character"),
        (side("left"), "a", -1, "seed must be"),
        (side("left"), "a", "7", "seed must be"),
        (side("middle"), "a", 7, "is damaged"),
        ("[]", "a", 7, "is damaged"),
        (None, "a", 7, "is damaged"),
        (side("left", shelved("🎈")), "a", 7, "no letter or digit"),
        (side("left", shelved("Do it.", strength=99)), "a", 7, "The strength must be"),
    ],
)
def test_a_side_that_cannot_answer_says_why(
    compare: Compare, asked: object, message: object, seed: object, sentence: str
) -> None:
    [answer] = compare.answer(asked, message, seed, SimpleNamespace(session_hash="a"))
    assert sentence in text_of(answer) and answer.startswith('<span class="error">')


def test_an_answer_that_is_compared_is_text(compare: Compare, answering: Callable[..., None]) -> None:
    answering("<b>", "&amp;\n  x", end="length")
    *_, last = compare.answer(side("left"), "a", 7, SimpleNamespace(session_hash="a"))
    assert "&lt;b&gt;&amp;amp;\n  x" in last and "Cut off at the token limit." in last


# ---- loading ----


def test_a_damaged_model_is_one_sentence_on_a_page_that_stays_up(
    tiny_base: Path, tiny_hyperlora: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"damaged")
    model = Model(lambda: hyperlora.pipeline(None, base=base, hyperlora=tiny_hyperlora))
    with serving(model) as url:
        model.start()
        wait_until(lambda: model.error)
        status, *_ = asyncio.run(Handlers(model).ready())
        assert "The base model in" in status
        assert "is damaged" in status
        assert "\n" not in status
        assert httpx.get(url).status_code == 200


def test_an_unexpected_failure_to_load_says_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(lambda: 1 / 0)
    model.start()
    wait_until(lambda: model.error)
    assert model.error == "The model could not be loaded; the server's log says why."
    assert "ZeroDivisionError" in caplog.text


def test_the_page_waits_for_the_model_and_says_when_each_message_stands_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = Handlers(Model(lambda: None))
    *_, timer = asyncio.run(loading.ready())
    assert timer.active
    assert "The model is still loading" in loading.generate(f"1 {REVERSE}")[0]
    with pytest.warns(UserWarning, match="The model is still loading"):
        assert Visitor(loading).hear(
            loading.send("7", "", False, "", "", "one", SimpleNamespace(session_hash="a"))
        ) == [SKIP]
    assert asyncio.run(Handlers(model).ready())[3:5] == (about(model.pipe), "")
    monkeypatch.setattr(model.pipe, "multi_turn", False)
    _, button, _, _, line, describe, *_, timer = asyncio.run(Handlers(model).ready())
    assert button.value == "Generate"
    assert "each message on its own" in line
    assert describe is False
    assert not timer.active


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_page_says_which_model_answers_and_what_it_can_do(
    pipe: hyperlora.Pipeline, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "preset", preset)
    line, more = re.fullmatch(r"<details><summary>(.*)</summary><p>(.*)</p></details>", about(pipe)).groups()
    name = "The mini model" if preset.name == "mini" else preset.base.split("/")[1].removesuffix("-v0.2")
    name = "SmolLM2, 135 million parameters:" if preset.name == "smollm2-135m" else f"{name} answers"
    assert line.lower().startswith(name.lower()) and len(line) < 90
    assert "cannot" in more or "adds no knowledge" in more


@pytest.mark.parametrize("options", ["", "--preset mini", "--preset mini --device cpu", "--preset mini --yes"])
def test_the_page_of_the_mini_model_opens_before_torch_is_imported(options: str) -> None:
    """Which takes seconds: all of `app.main` up to where the page is there."""
    code = (
        "import sys, app\n"
        "from hyperlora.arguments import choose, named\n"
        "args = app.parse_arguments(sys.argv[1:])\n"
        "choice = choose(args) if named(args) else None\n"
        "from hyperlora.model import Model\n"
        "from hyperlora.ui.page import build_page\n"
        "build_page(Model(lambda: None))\n"
        "print(choice and choice.pair.title, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *options.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["mini" if options else "None", "False"], done.stderr


@pytest.mark.parametrize("own", [["base"], ["hyperlora-M"], ["base", "hyperlora-M"]], ids="+".join)
def test_the_page_says_nothing_of_a_preset_that_is_not_whole(own: list[str], tmp_path: Path) -> None:
    """What the preset says is of its base and its hypernetwork together."""
    copies = {name: shutil.copytree(assets_dir() / "mini" / name, tmp_path / f"my-{name}") for name in own}
    with closing(hyperlora.pipeline("mini", base=copies.get("base"), hyperlora=copies.get("hyperlora-M"))) as pipe:
        base, network = (f"my-{name}" if name in own else name for name in ("base", "hyperlora-M"))
        assert about(pipe) == f"{base} answers; adapters come from {network}."
        assert pipe.multi_turn == (len(own) == 2)  # but its base's manners stay


def test_the_description_is_in_the_prompt_from_the_start_where_it_was_in_training(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.pipe, "describe", True)
    assert asyncio.run(Handlers(model).ready())[5] is True
    describe = asyncio.run(Handlers(model).ready(False))[5]  # a page that is loaded again, on which it was unticked
    assert describe == gr.skip()


def test_the_examples_are_those_of_the_model_that_answers(
    pipe: hyperlora.Pipeline, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def shown() -> tuple[list[dict], list[str], str | None]:
        *_, texts, chips, box, _ = asyncio.run(Handlers(model).ready())
        assert chips.visible is bool(chips.raw_samples)
        return json.loads(texts), [sample[0] for sample in chips.raw_samples], box.placeholder

    general = shown()
    for preset in PRESETS.values():
        monkeypatch.setattr(pipe, "preset", preset)
        examples, chips, placeholder = shown()
        assert chips == [example["description"] for example in examples] and placeholder == chips[0]
        assert all(set(example) == {"description", "message"} for example in examples)
        assert ((examples, chips, placeholder) == general) == (preset.name != "mini")
    monkeypatch.setattr("hyperlora.presets.assets_dir", lambda: Path("/nowhere"))
    assert shown() == ([], [], "")
    assert "The page goes on without examples" in caplog.text


def test_card_and_readme_are_html_of_our_own_and_load_nothing(
    on: Handlers, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def links(html: str) -> set[str | None]:
        found: set[str | None] = set()
        parser = HTMLParser()

        def see(tag: str, attributes: list[tuple[str, str | None]]) -> None:
            given = dict(attributes)
            assert tag not in ("img", "script", "b") and not any(name.startswith("on") for name in given)
            if "href" in given:
                assert (given["target"], given["rel"]) == ("_blank", "noopener noreferrer")
                found.add(given["href"])

        parser.handle_starttag = see
        parser.feed(html)
        return found

    assert "<h1>HyperLoRA</h1>" in on.read("readme") and links(on.read("readme")) <= {"http://127.0.0.1:7860"}
    assert on.read("card") == f'<div class="markdown"><p>No card comes with {pipe.hyperlora.name}.</p>\n</div>'
    for preset in PRESETS.values():
        monkeypatch.setattr(pipe, "preset", preset)
        hub = {f"https://huggingface.co/{preset.hyperlora}"} if preset.hyperlora_subfolder else set()
        assert links(on.read("card")) == hub
        assert preset.name != "mini" or "<h1>HyperLoRA mini</h1>" in on.read("card")
    monkeypatch.setattr("hyperlora.ui.documents.assets_dir", lambda: Path("/nowhere/assets"))  # an installed package
    monkeypatch.setattr("hyperlora.ui.documents.metadata", lambda name: email.message_from_string("Name: a\n\n# Mine"))
    assert "<h1>Mine</h1>" in on.read("readme")
    monkeypatch.setattr("hyperlora.ui.documents.metadata", lambda name: metadata("no package of this name"))
    assert on.read("readme") == "<p>The README is not beside this copy of HyperLoRA.</p>"


# ---- a download ----


def offer(model: Model) -> tuple[bool, str, list[str]]:
    """What the page shows of a download: whether anything, the text, and the buttons that are there."""
    panel, text, allow, refuse, *_ = asyncio.run(Handlers(model).offer())
    buttons = ["Download"] if getattr(allow, "visible", False) else []
    return panel.visible, text, [*buttons, getattr(refuse, "value", None)]


def asking(pipe: hyperlora.Pipeline, heard: list) -> Model:
    """A model that asks before it loads, and downloads 10 GB in 5 steps, for each of which it waits."""
    steps = threading.Semaphore(0)

    def load() -> hyperlora.Pipeline:
        try:
            model.ask("Big <b> needs a download of 10.0 GB.")
            for done in range(0, 12, 2):
                assert steps.acquire(timeout=300)
                model.report(done * 1e9, 10e9)
                heard.append(done)
        except Cancelled:
            heard.append("cancelled")
        return pipe

    model = Model(load)
    model.start()
    wait_until(lambda: model.question)
    model.step = steps.release
    return model


def test_a_download_is_asked_for_on_the_page_and_shown_while_it_runs(pipe: hyperlora.Pipeline) -> None:
    heard: list = []
    model = asking(pipe, heard)
    text = "<p>Big &lt;b&gt; needs a download of 10.0&nbsp;GB.</p>"
    assert offer(model) == (True, text, ["Download", "Use a small model instead"])
    *_, generate, message = asyncio.run(Handlers(model).offer())
    assert generate.value == message.placeholder == "Waiting for your choice…"
    asyncio.run(Handlers(model).allow())
    assert "The download begins." in offer(model)[1]
    for _ in range(3):
        model.step()
    wait_until(lambda: heard == [0, 2, 4])
    shown, text, buttons = offer(model)
    assert shown and buttons == ["Cancel"] and "4.0 GB of 10.0 GB" in text and "width: 40.0%" in text
    for _ in range(3):
        model.step()
    wait_until(lambda: model.settled)
    assert heard == [0, 2, 4, 6, 8, 10] and model.pipe is pipe
    assert not offer(model)[0]


def test_a_visitor_may_take_a_smaller_model_before_and_while_it_downloads(pipe: hyperlora.Pipeline) -> None:
    before: list = []
    model = asking(pipe, before)
    asyncio.run(Handlers(model).refuse())
    wait_until(lambda: model.settled)
    during: list = []
    model = asking(pipe, during)
    asyncio.run(Handlers(model).allow())
    model.step()
    wait_until(lambda: during == [0])
    asyncio.run(Handlers(model).refuse())
    asyncio.run(Handlers(model).allow())  # a page that is a moment late
    assert not offer(model)[0]
    model.step()
    wait_until(lambda: model.settled)
    assert (before, during) == (["cancelled"], [0, "cancelled"])


def test_nobody_can_answer_what_is_not_asked(pipe: hyperlora.Pipeline) -> None:
    model = Model(lambda: pipe)
    model.answer(True)
    model.answer(False)
    model.report(1.0, 2.0)
    assert offer(model)[0]
    with pytest.raises(UserError, match="still loading"):
        model.pipe  # noqa: B018


def test_progress_says_how_long_it_will_take() -> None:
    assert "about 2 minutes left" in progress(1e9, 5e9, 30)
    assert "about a minute left" in progress(9e9, 10e9, 60)
    assert "left" not in progress(1e9, 5e9, 2)


# ---- the server ----


@pytest.fixture(scope="module")
def url(model: Model) -> Iterator[str]:
    with serving(model) as url:
        yield url


def test_visitors_have_their_own_adapters_answers_at_the_same_time(url: str, pipe: hyperlora.Pipeline) -> None:
    texts = [REVERSE, ADD, "Write it in capital letters.", ""]
    expected = [pipe.chat("one two", adapter=pipe.adapt(text) if text else None) for text in texts]
    clients = [Client(url, verbose=False) for _ in texts]
    with slow(pipe, 0.2):
        for client, text in zip(clients, texts, strict=True):
            if text:
                assert client.predict(f"1 {text}", api_name="/generate")[1] == f"1 {text}"
        jobs = [
            client.submit("7", shelved(text), False, "", "", "one two", api_name="/send")
            for client, text in zip(clients, texts, strict=True)
        ]
        wait_until(lambda: len(pipe.engine._batch.rows) == len(jobs))  # they are decoded together
        late = Client(url, verbose=False)
        late.predict("1 Repeat the text.", api_name="/generate")  # while the others are answered
        given = [job.result() for job in jobs]
    for (chat, kept, *_), text, words in zip(given, texts, expected, strict=True):
        (turn,) = read_turns(f"[{kept}]")
        assert (turn.answer, turn.by) == (words, text or "No adapter")
        assert [part["text"] for part in chat[-1]["content"]] == [
            part["text"] for part in bubbles([turn])[-1]["content"]
        ]


def test_one_session_gets_one_answer_at_a_time(url: str, pipe: hyperlora.Pipeline) -> None:
    client = Client(url, verbose=False)
    with slow(pipe, 0.05):
        jobs = [client.submit("7", "", False, "", "", message, api_name="/send") for message in ("one", "two", "three")]
        given = [job.result(timeout=300)[1] for job in jobs]
    answered = [kept for kept in given if isinstance(kept, str)]
    assert len(answered) == 1 and len(read_turns(f"[{answered[0]}]")) == 1


def test_a_session_that_the_server_forgot_goes_on(url: str, model: Model, pipe: hyperlora.Pipeline) -> None:
    demo = build_page(model)
    try:
        url = launch(demo)
        client = Client(url, verbose=False)
        _, kept, *_ = client.predict("1", shelved(REVERSE), False, "", "", "one two", api_name="/send")
        demo.state_holder.session_data.clear()  # what 1,000 others do
        _, kept, *_ = client.predict("2", shelved(REVERSE), False, f"[{kept}]", "", "three", api_name="/send")
        _, made = client.predict(f"2 {ADD}", api_name="/generate")
    finally:
        demo.close()
    (turn,) = read_turns(f"[{kept}]")
    assert (turn.question, turn.by, turn.id, made) == ("three", REVERSE, "2", f"2 {ADD}")


@pytest.mark.parametrize("data", [b'"\xff\xfe"', b'"\\ud83d"', b'"a \\ude00"', b"3", b"null", b"[1]"], ids=repr)
def test_what_is_no_text_is_no_traceback_over_http(
    url: str, data: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    config = httpx.get(f"{url}config").json()
    (send,) = (fn["id"] for fn in config["dependencies"] if fn["api_name"] == "send")
    body = b'{"fn_index": %d, "session_hash": "abc", "data": ["7", "", false, "", "", %s]}' % (send, data)
    joined = httpx.post(f"{url}gradio_api/queue/join", content=body, headers={"Content-Type": "application/json"})
    if joined.status_code == 200:
        with httpx.stream("GET", f"{url}gradio_api/queue/data?session_hash=abc", timeout=60) as stream:
            lines = [line for line in stream.iter_lines() if '"log"' in line]
        assert len(lines) == 1 and "The message" in lines[0]
    else:
        assert joined.status_code in (400, 422)
    said = caplog.text + "".join(capfd.readouterr())
    assert "Traceback" not in said


def test_nothing_is_open_that_the_page_does_not_need(url: str) -> None:
    assert httpx.get(f"{url}monitoring").status_code in (403, 404)
    assert httpx.get(f"{url}monitoring/summary").status_code in (403, 404)
    assert httpx.get(f"{url}gradio_api/runs").status_code == 404
    assert httpx.get(f"{url}gradio_api/file={ROOT / 'app.py'}").status_code == 403
    listed = httpx.get(f"{url}gradio_api/info").json()["named_endpoints"]
    assert set(listed) == {"/adapt", "/chat", "/compare", "/export"}
    for address in ("docs", "redoc", "openapi.json"):
        assert httpx.get(f"{url}{address}").status_code == 404
    for address in ("file=http://127.0.0.1/", "file/https://127.0.0.1/", "proxy=https://127.0.0.1/"):
        answer = httpx.get(f"{url}gradio_api/{address}")
        assert answer.status_code == 403 and "fetches nothing" in answer.text
    config = httpx.get(f"{url}config").json()
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False
    assert config["max_file_size"] == MAX_ZIP


# ---- the command ----


def run_app(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "app.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def test_help_names_every_option() -> None:
    text = run_app("--help").stdout
    for option in (
        "--preset",
        "--base",
        "--hyperlora",
        "--device",
        "--dtype",
        "--quantize",
        "--yes",
        "--host",
        "--port",
    ):
        assert option in text


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_app("--port", str(port))
    assert result.returncode == 1
    assert result.stderr.strip().splitlines() == [
        f"The page cannot be opened: port {port} on 127.0.0.1 cannot be used; choose another with --port or --host."
    ]


def test_what_is_named_and_cannot_be_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--base", "Qwen/Qwen3-8B"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "python -m training.plan --base Qwen/Qwen3-8B" in err
    assert app.main(["--preset", "maxi"]) == 2


@pytest.mark.parametrize("port", ["0", "65536", "many"])
def test_a_bad_port_is_refused(port: str) -> None:
    result = run_app("--port", port)
    assert result.returncode == 2
    assert "give a number from 1 to 65535" in result.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "http://127.0.0.1", "::1%lo", "127.0.0.1:80"])
def test_a_host_that_is_none_of_this_machine_is_one_sentence(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--host", host, "--preset", "mini"]) == 1
    assert capsys.readouterr().err == (
        f"The page cannot be opened: {host} has no port from 7860 up that can be used; choose another with --port or "
        "--host.\n"
    )


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", pytest.param("::1", marks=ipv6), pytest.param("[::1]", marks=ipv6)]
)
def test_addresses(host: str) -> None:
    demo = build_page(Model(lambda: None))
    try:
        url = launch(demo, host)
        assert httpx.get(url).status_code == 200
    finally:
        demo.close()
    assert re.fullmatch(rf"http://{re.escape('[::1]' if ':' in host else host)}:\d+/", url)


PROXIES = {
    "http": {"http_proxy": "http://127.0.0.1:9"},
    "upper": {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "example.org"},
    "socks": {"all_proxy": "socks5://127.0.0.1:9", "no_proxy": "example.org"},
    "unknown": {"ALL_PROXY": "carrier-pigeon://coop"},
}


@pytest.mark.parametrize("environment", PROXIES.values(), ids=PROXIES)
def test_proxies_are_for_other_machines(url: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with app.environment(no_proxy="*"):
        assert httpx.get(url, timeout=300).status_code == 200
    assert dict(os.environ) == before
    with pytest.raises((httpx.HTTPError, ImportError, ValueError)):
        httpx.get(url)


@contextmanager
def started(
    *arguments: str,
    without: str = "",
    within: Sequence[str] = (),
    folder: Path = ROOT,
    preset: str | None = "mini",
    **variables: str,
) -> Iterator[str]:
    """The address of `python app.py` in such an environment; it says nothing of an error."""
    environment = {name: value for name, value in os.environ.items() if name != without} | variables
    process = subprocess.Popen(
        [*within, sys.executable, "app.py", *(("--preset", preset) if preset else ()), *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = ""
    try:
        for line in process.stdout:
            said += line
            if found := re.match(r"HyperLoRA is at (\S+)", line):
                yield found[1]
                break
        else:
            pytest.fail(said)
    finally:
        process.terminate()
        said += process.communicate()[0]
    assert "Traceback" not in said and "Error" not in said, said


def no_user() -> list[str]:
    """What runs a command as a user who is in no list; skips where that cannot be."""
    command = ["unshare", "--user", "--map-user=54321"]
    if shutil.which(command[0]) is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("needs user namespaces")
    return command


@pytest.mark.parametrize("case", ["nobody", "home", "shared", "ipv6", "proxies"])
def test_it_starts_and_works_in_odd_environments(case: str, tmp_path: Path) -> None:
    options: dict = {}
    arguments: list[str] = []
    if case == "nobody":  # as in a container that is run with any user number
        options = {"within": no_user(), "without": "HOME"}
    elif case == "home":
        options = {"HOME": "/dev/null/nothing"}
    elif case == "shared":  # the folder that Gradio has for all users is not this user's
        (tmp_path / "gradio").write_text("another's")
        options = {"TMPDIR": str(tmp_path)}
    elif case == "ipv6":
        if not has_ipv6():
            pytest.skip("this machine has no IPv6")
        options = {"GRADIO_SERVER_NAME": "::1"}
    else:
        options = PROXIES["http"] | PROXIES["socks"]
    with started(*arguments, **options) as url:
        wait_until(lambda: "still loading" not in (said := ask_server(url, "generate", f"1 {ADD}")[0]) and said)
        status, *_, made = ask_server(url, "generate", f"1 {ADD}")
        assert "Ready." in status and made == f"1 {ADD}"
        _, archive = ask_server(url, "make", json.dumps({"adapter": shelved(ADD), "form": "peft"}))
        assert zipfile.is_zipfile(io.BytesIO(httpx.get(archive["url"], trust_env=False, timeout=300).content))


def test_folders_that_cannot_be_written_are_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/dev/null/nothing")
    assert app.main(["--preset", "mini"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "/dev/null/nothing could not be written" in err and "GRADIO_TEMP_DIR" in err
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null/nothing")
    assert app.main(["--preset", "mini"]) == 2
    err = capsys.readouterr().err
    assert err == "No folder for temporary files can be written: set TMPDIR to one that can.\n"
