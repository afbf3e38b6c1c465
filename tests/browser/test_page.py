"""The page in a real browser, on the tiny model."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, expect

import hyperlora
from hyperlora.errors import UserError
from hyperlora.hub import Cancelled
from hyperlora.model import Model
from hyperlora.presets import get_preset, load_examples
from hyperlora.recipe import Recipe
from tests.browser.visit import (
    HOSTILE,
    expect_answers,
    generate,
    pick,
    said,
    send,
    stored,
    visit,
    visit_for_a_while,
)
from tests.ui.visitor import ADD, REVERSE, serving, slow, wait_until


@contextmanager
def held(pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No adapter is made until the event is set, or at the end."""
    adapt, go = pipe.adapt, threading.Event()

    def wait(text: str) -> object:
        assert go.wait(300)
        return adapt(text)

    with monkeypatch.context() as patch:
        patch.setattr(pipe, "adapt", wait)
        try:
            yield go
        finally:
            go.set()


def test_from_an_example_to_an_answer(page: Page, pipe: hyperlora.Pipeline) -> None:
    example = load_examples()[0]
    page.locator("#examples button").first.click()
    expect(page.locator("#description textarea")).to_have_value(example["description"])
    expect(page.locator("#message textarea")).to_have_value(example["message"])
    expect(page.locator("#status")).to_have_text(re.compile(r"Made in \d+ ms\.|Ready\."))
    page.get_by_role("button", name="Send").click()
    expect_answers(page, said(pipe, example["message"], example["description"]))
    expect(page.locator("#status")).to_have_text(re.compile(r"Made in \d+ ms\.|Ready\."))  # it is still there
    expect(page.locator("#message textarea")).to_have_value("")
    expect(page.locator("#line")).to_contain_text("each message on its own")


def test_the_page_says_which_model_answers_and_opens_to_more(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect(page.locator("#about")).to_contain_text(" answers; adapters come from ")
    preset = get_preset("mini")
    monkeypatch.setattr(pipe, "preset", preset)
    page.reload()
    expect(page.locator("#about summary")).to_have_text(preset.summary)
    expect(page.locator("#about p")).to_be_hidden()
    page.locator("#about summary").press("Enter")
    expect(page.locator("#about p")).to_have_text(preset.description)


def test_the_selected_row_of_a_long_shelf_is_in_view(page: Page) -> None:
    for i in range(12):
        generate(page, f"Write the {i + 1}. letter of the word, and nothing else.")
    for row, description in (
        (page.locator("#shelf label").last, "Write the 1. letter of the word, and nothing else."),
        (page.locator("#shelf label").first, ""),
    ):
        row.click()
        expect(page.locator("#shelf label.selected")).to_have_text(description or "No adapter")
        page.reload()
        expect(page.locator("#shelf label.selected")).to_have_text(description or "No adapter")
        expect(page.locator("#shelf label.selected")).to_be_in_viewport()
        # and not under the edge of what scrolls, a moment later
        page.wait_for_function("""() => {
            const row = document.querySelector("#shelf label.selected").getBoundingClientRect();
            return document.elementsFromPoint(row.x + 20, row.y + 6).some((element) => element.closest("#shelf label"));
        }""")


def test_an_example_leaves_a_message_that_was_typed(page: Page) -> None:
    page.locator("#message textarea").fill("mine")
    page.locator("#examples button").nth(1).click()
    expect(page.locator("#description textarea")).to_have_value(load_examples()[1]["description"])
    expect(page.locator("#message textarea")).to_have_value("mine")


def test_adapters_are_switched_in_the_middle_of_a_conversation(page: Page, pipe: hyperlora.Pipeline) -> None:
    generate(page, REVERSE)
    generate(page, ADD)
    send(page, "one two")
    answers = [said(pipe, "one two", ADD)]
    expect_answers(page, *answers)
    for description in ("", REVERSE):
        page.locator("#shelf label", has_text=description or "No adapter").click()
        send(page, "one two")
        answers.append(said(pipe, "one two", description))
        expect_answers(page, *answers)


def test_the_description_is_put_in_the_prompt_by_a_switch(page: Page, pipe: hyperlora.Pipeline) -> None:
    generate(page, REVERSE)
    switch = page.get_by_label("Put the description in the prompt too")
    expect(switch).not_to_be_checked()
    switch.check()
    send(page, "one two")
    by = f"{REVERSE} · description in the prompt"
    expect_answers(page, said(pipe, "one two", REVERSE, by, describe=True))
    switch.uncheck()
    page.locator("#retry").click()
    expect_answers(page, said(pipe, "one two", REVERSE))


def test_a_double_click_makes_one_adapter(page: Page) -> None:
    page.locator("#description textarea").fill(REVERSE)
    page.locator("#generate").dblclick()
    expect(page.locator("#shelf label.selected")).to_have_text(REVERSE)
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("Ready.")
    expect(page.locator("#shelf label")).to_have_text(["No adapter", REVERSE])


@pytest.mark.parametrize("description", ["", "   ", "🎈", "a " * 5000])
def test_a_bad_description_gets_a_sentence(page: Page, description: str) -> None:
    page.locator("#description textarea").fill(description)
    page.locator("#generate").click()
    expect(page.locator("#status .error")).to_contain_text("The description")
    expect(page.locator("#shelf label")).to_have_count(1)
    generate(page, REVERSE)
    expect(page.locator("#status .error")).to_have_count(0)


def test_a_far_description_gets_a_notice(page: Page) -> None:
    generate(page, "qx vbn wlkj")
    expect(page.locator("#status .notice")).to_contain_text("may not help")


def test_a_message_of_spaces_gets_a_sentence_and_changes_nothing(page: Page, pipe: hyperlora.Pipeline) -> None:
    send(page, "one two")
    expect_answers(page, said(pipe, "one two"))
    send(page, "   ")
    expect(page.locator(".toast-body")).to_contain_text("The message is empty")
    expect_answers(page, said(pipe, "one two"))
    expect(page.locator("#retry")).to_have_text("Retry")


def test_stop_retry_undo_and_clear(page: Page, pipe: hyperlora.Pipeline) -> None:
    stop = page.get_by_role("button", name="Stop")
    whole = pipe.chat("one two")
    with slow(pipe, 1):
        send(page, "one two")
        stop.click()  # the first moment that it can be
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        page.locator("#retry").click()
        expect(page.locator("#chat .bot.message .md").first).to_contain_text(whole[:3])
        expect(page.locator("#clear")).to_be_disabled()
        stop.click()
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator("#chat .by")).to_have_text("No adapter · stopped")
    part = page.locator("#chat .bot.message .md").first.text_content()
    assert whole.startswith(part)
    assert part != whole
    generate(page, ADD)
    page.locator("#retry").click()
    expect_answers(page, said(pipe, "one two", ADD))
    page.locator("#undo").click()
    expect(page.locator("#chat .message-row")).to_have_count(0)
    expect(page.locator("#message textarea")).to_have_value("one two")
    expect(page.locator("#retry")).to_be_disabled()
    send(page, "one two")
    expect_answers(page, said(pipe, "one two", ADD))
    page.locator("#clear").click()
    expect(page.locator("#chat .message-row")).to_have_count(0)
    expect(page.locator("#clear")).to_be_disabled()


def test_undo_leaves_what_is_half_typed(page: Page) -> None:
    for message in ("one", "two"):
        send(page, message)
        expect(page.locator("#chat .user.message")).to_contain_text([message])
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.locator("#message textarea").fill("half")
    page.locator("#undo").click()
    expect(page.locator("#chat .user.message")).to_have_text(["one"])
    expect(page.locator("#message textarea")).to_have_value("half")
    page.locator("#message textarea").fill("")
    page.locator("#undo").click()
    expect(page.locator("#message textarea")).to_have_value("one")
    expect(page.locator("#undo")).to_be_disabled()


TEXTS = [
    "def f(x):\n    if x:\n\t\treturn 1\n\n\n    return  2  ",
    "    four first\n  two\n",
    "\n\n\tafter two lines\n\n",
    "<b>bold</b> &lt;i&gt; <script>alert(1)</script> <!-- -->",
    "# head\n* one\n1. two\n```py\n    code\n```\n[a](b) `c` **d** $$e$$ \\(f\\)",
    "a\tb  c\u00a0d\u2003e 😀 \u202ef",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_questions_and_answers_are_shown_to_the_last_space(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    middle, heard, go = len(text) // 2, [], threading.Event()

    class Stream:
        finish_reason, tokens = None, 0

        def __iter__(self) -> Iterator[str]:
            yield text[:middle]
            time.sleep(0.1)  # more than the page's pause between two updates
            yield text[middle:]
            time.sleep(0.1)
            yield "∎"
            assert go.wait(300)
            self.finish_reason = "stop"

        def stop(self) -> None: ...

    monkeypatch.setattr(pipe, "chat", lambda messages, **_: heard.append(messages[-1]["content"]) or Stream())
    send(page, text)
    answer = page.locator("#chat .bot.message .md").first
    expect(answer).to_contain_text("∎")
    assert answer.text_content() == text + "∎"  # as it streams, in differences
    go.set()
    expect_answers(page, (text + "∎", "No adapter"))
    assert page.locator("#chat .user.message .md").text_content() == text
    assert heard == [text]
    assert page.locator("#chat .md").first.evaluate("(element) => getComputedStyle(element).whiteSpace") == "pre-wrap"


MARKDOWN = """# Soup

Take *two* **leeks**,
then <b>cook</b>:

1. Wash.
2. Cut:

```py
for leek in leeks:
\tif leek:

        cut(leek)
```

| a | b |
| - | - |
| 1 | `2` |

![picture](http://127.0.0.2/a.png) [link](http://127.0.0.2/b) <img src="http://127.0.0.2/c.png">
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_markdown_is_shown_as_such_and_loads_nothing(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    class Stream:
        finish_reason, tokens = "stop", 0

        def __iter__(self) -> Iterator[str]:
            for start in range(0, len(MARKDOWN), 40):
                yield MARKDOWN[start : start + 40]
                time.sleep(0.06)

        def stop(self) -> None: ...

    page.set_viewport_size({"width": width, "height": 800})
    monkeypatch.setattr(pipe, "markdown", True)
    monkeypatch.setattr(pipe, "chat", lambda *_, **__: Stream())
    send(page, "**Soup**?")
    expect(page.locator("#chat .markdown a")).to_have_count(2)  # the last line is there
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    for _ in range(2):
        answer = page.locator("#chat .bot.message .markdown")
        expect(answer.locator("h1")).to_have_text("Soup")
        assert answer.locator("p").first.inner_text() == "Take two leeks,\nthen <b>cook</b>:"
        expect(answer.locator("strong")).to_have_text("leeks")
        expect(answer.locator("ol > li")).to_have_text(["Wash.", "Cut:"])
        assert answer.locator("pre").text_content() == "for leek in leeks:\n\tif leek:\n\n        cut(leek)\n"
        expect(answer.locator("td")).to_have_text(["1", "2"])
        expect(answer.locator("img, b")).to_have_count(0)
        link = answer.locator("a", has_text="link")
        assert (link.get_attribute("href"), link.get_attribute("target")) == ("http://127.0.0.2/b", "_blank")
        assert "noopener" in link.get_attribute("rel")
        expect(page.locator("#chat .user.message .md")).to_have_text("**Soup**?")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.reload()  # as the page held it


@pytest.mark.parametrize(("end", "note"), [("length", "cut off at the token limit"), ("stopped", "stopped")])
def test_an_answer_that_is_not_whole_says_so(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch, end: str, note: str
) -> None:
    class Stream(list):
        finish_reason, tokens = end, 0

        def stop(self) -> None: ...

    monkeypatch.setattr(pipe, "chat", lambda *_, **__: Stream(["one two"]))
    send(page, "go on")
    expect_answers(page, ("one two", f"No adapter · {note}"))


# ---- what is pressed after Generate is for the adapter that it makes ----


@pytest.mark.parametrize("press", ["Enter", "Generate", "chip"])
def test_a_message_sent_while_an_adapter_is_made_waits_for_that_one(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch, press: str
) -> None:
    generate(page, ADD)
    example = load_examples()[2]
    new = example["description"] if press == "chip" else f"Something new by {press}."
    with held(pipe, monkeypatch) as go:
        page.locator("#message textarea").fill("one two")
        if press == "chip":
            page.locator("#examples button").nth(2).click()
        else:
            page.locator("#description textarea").fill(new)
            if press == "Enter":
                page.locator("#description textarea").press("Enter")
            else:
                page.locator("#generate").click()
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("button", name="Waiting for the adapter…")).to_be_visible()
        expect(page.locator("#status .done")).to_have_text("Making the adapter…")
        expect(page.locator("#message textarea")).to_have_value("one two")
        go.set()
        expect_answers(page, said(pipe, "one two", new))
    expect(page.locator("#shelf label.selected")).to_have_text(new)
    expect(page.locator("#message textarea")).to_have_value("")


def test_retry_while_an_adapter_is_made_waits_for_that_one(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(page, "one two")
    expect_answers(page, said(pipe, "one two"))
    with held(pipe, monkeypatch) as go:
        page.locator("#description textarea").fill("Retry by this.")
        page.locator("#description textarea").press("Enter")
        page.locator("#retry").click()
        expect(page.get_by_role("button", name="Waiting for the adapter…")).to_be_visible()
        go.set()
        expect_answers(page, said(pipe, "one two", "Retry by this."))


def test_generate_pressed_twice_makes_both_and_selects_the_last(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(pipe, monkeypatch) as go:
        for order, text in enumerate(("The first of two.", "The second of two."), start=1):
            page.locator("#description textarea").fill(text)
            page.locator("#description textarea").press("Enter")
            expect(page.locator("#ordered textarea")).to_have_value(f"{order} {text}")  # no one types on at once
        page.locator("#description textarea").fill("Not pressed.")
        send(page, "one two")
        expect(page.get_by_role("button", name="Waiting for the adapter…")).to_be_visible()
        go.set()
        expect_answers(page, said(pipe, "one two", "The second of two."))
    expect(page.locator("#shelf label")).to_have_text(["No adapter", "The second of two.", "The first of two."])
    expect(page.locator("#shelf label.selected")).to_have_text("The second of two.")


def test_what_is_selected_after_generate_stays_selected_and_answers(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(page, ADD)
    generate(page, REVERSE)
    expected = said(pipe, "one two", ADD)
    with held(pipe, monkeypatch) as go:
        page.locator("#description textarea").fill("Made meanwhile.")
        page.locator("#generate").click()
        page.locator("#shelf label", has_text=ADD).click()
        send(page, "one two")
        expect_answers(page, expected)
        go.set()
        expect(page.locator("#shelf label")).to_have_text(["No adapter", "Made meanwhile.", REVERSE, ADD])
    expect(page.locator("#shelf label.selected")).to_have_text(ADD)


def test_a_message_after_a_description_that_cannot_be_is_not_sent(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(text: str) -> None:
        raise UserError("The description cannot be read.")

    monkeypatch.setattr(pipe, "adapt", refuse)
    with held(pipe, monkeypatch) as go:
        page.locator("#description textarea").fill("Repeat it.")
        page.locator("#generate").click()
        send(page, "one two")
        expect(page.get_by_role("button", name="Waiting for the adapter…")).to_be_visible()
        go.set()
        expect(page.locator(".toast-body")).to_contain_text("The description")
    expect(page.locator("#message textarea")).to_have_value("one two")
    expect(page.locator("#message textarea")).to_be_editable()
    page.get_by_role("button", name="Send").click()
    expect_answers(page, said(pipe, "one two"))


def test_what_is_changed_after_send_is_for_the_next_message(page: Page, pipe: hyperlora.Pipeline) -> None:
    generate(page, REVERSE)
    with slow(pipe, 0.05):
        send(page, "one two")
        page.locator("#strength input[type=number]").fill("0.5")
        page.locator("#shelf label", has_text="No adapter").click()
        page.get_by_label("Put the description in the prompt too").check()
        expect_answers(page, said(pipe, "one two", REVERSE))
    send(page, "one two")
    expect(page.locator("#chat .bot.message")).to_have_count(2)
    expect(page.locator("#chat .bot.message").last).to_contain_text("No adapter")


# ---- a reload, a lost connection, another server ----


def fill(page: Page, pipe: hyperlora.Pipeline) -> list[tuple[str, str]]:
    """A page on which a visitor has something of everything; returns the answers."""
    generate(page, ADD)
    generate(page, REVERSE)
    page.locator("#shelf label", has_text=ADD).click()
    page.locator("#strength input[type=number]").fill("0.5")
    page.locator("#strength input[type=number]").press("Enter")
    page.get_by_label("Put the description in the prompt too").check()
    send(page, "  one two")
    by = f"{ADD} · strength 0.5 · description in the prompt"
    answers = [said(pipe, "one two", ADD, by, strength=0.5, describe=True)]
    expect_answers(page, *answers)
    page.locator("#description textarea").fill("Half of a descr")
    page.locator("#message textarea").fill("  half of a\tmess")
    return answers


def expect_filled(page: Page, answers: list[tuple[str, str]]) -> None:
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator("#shelf label")).to_have_text(["No adapter", REVERSE, ADD])
    expect(page.locator("#shelf label.selected")).to_have_text(ADD)
    expect(page.locator("#strength input[type=number]")).to_have_value("0.5")
    expect(page.get_by_label("Put the description in the prompt too")).to_be_checked()
    expect(page.locator("#description textarea")).to_have_value("Half of a descr")
    expect(page.locator("#message textarea")).to_have_value("  half of a\tmess")
    expect_answers(page, *answers)
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#chat .bot.message")).to_have_count(len(answers) + 1)
    expect(page.locator("#chat .bot.message").last).to_contain_text(answers[0][1].partition(" · cut")[0])
    expect(page.locator("#chat .user.message .md").first).to_have_text("  one two", use_inner_text=False)


def test_a_reload_loses_nothing(page: Page, pipe: hyperlora.Pipeline) -> None:
    answers = fill(page, pipe)
    page.reload()
    expect_filled(page, answers)
    page.locator("#clear").click()
    page.reload()
    expect(page.locator("#shelf label.selected")).to_have_text(ADD)
    expect(page.locator("#chat .message-row")).to_have_count(0)


def test_a_lost_connection_loses_nothing(page: Page, pipe: hyperlora.Pipeline) -> None:
    answers = fill(page, pipe)
    page.context.set_offline(True)
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".toast-body")).to_contain_text("Connection to the server was lost")
    with page.expect_navigation():  # Gradio loads the page again as soon as the server answers
        page.context.set_offline(False)
    expect_filled(page, answers)


@pytest.mark.parametrize("noticed", [False, True])
def test_a_server_that_was_started_again_goes_on(
    page: Page, url: str, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch, noticed: bool
) -> None:
    answers = fill(page, pipe)
    again = Model(lambda: pipe)  # it knows of no visitor, and has no adapter in memory
    again.start()
    with serving(again) as other:
        if noticed:
            page.context.route(f"{url}**", lambda route: route.abort("connectionrefused"))
            page.get_by_role("button", name="Send").click()
            expect(page.locator(".toast-body")).to_contain_text("Connection to the server was lost")
            page.context.unroute_all()

        def instead(route: Route) -> None:
            headers = route.request.headers | {"x-forwarded-host": urlsplit(url).netloc}
            route.continue_(url=route.request.url.replace(url, other), headers=headers)

        with page.expect_navigation() if noticed else nullcontext():
            page.context.route(f"{url}**", instead)
        expect_filled(page, answers)
        generate(page, "Made by the other server.")
        expect(page.locator("#shelf label")).to_have_text(["No adapter", "Made by the other server.", REVERSE, ADD])
        page.goto("about:blank")
        page.context.unroute_all()


def expect_interrupted(page: Page, whole: str) -> None:
    """An answer of which the page has a part, and says so; asked again it is whole."""
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator("#chat .by")).to_have_text("No adapter · interrupted")
    part = page.locator("#chat .bot.message .md").first.text_content()
    assert part != whole and whole.startswith(part)
    page.locator("#retry").click()
    expect(page.locator("#chat .bot.message")).not_to_contain_text("interrupted")


def test_a_reload_in_the_middle_of_an_answer_ends_it_and_the_page_says_so(page: Page, pipe: hyperlora.Pipeline) -> None:
    with slow(pipe, 2):
        send(page, "one two")
        wait_until(lambda: any(chat["turns"][0]["answer"] for chat in stored(page, "chat")))
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        page.reload()
        wait_until(lambda: not pipe.engine._batch.rows, 60)  # the whole answer would take longer
    expect_interrupted(page, pipe.chat("one two"))
    expect_answers(page, said(pipe, "one two"))


def test_a_server_that_was_started_again_in_the_middle_of_an_answer_goes_on(
    browser: Browser, url: str, pipe: hyperlora.Pipeline
) -> None:
    model = Model(lambda: pipe)
    model.start()
    with serving(model) as first, visit(browser, first) as page:
        expect(page.locator("#generate")).to_be_enabled()

        def instead(route: Route) -> None:
            headers = route.request.headers | {"x-forwarded-host": urlsplit(first).netloc}
            route.continue_(url=route.request.url.replace(first, url), headers=headers)

        with slow(pipe, 2):
            send(page, "one two")
            wait_until(lambda: any(chat["turns"][0]["answer"] for chat in stored(page, "chat")))
            page.context.route(f"{first}**", instead)  # another server from now on, which knows of nothing
            page.reload()
            wait_until(lambda: not pipe.engine._batch.rows, 60)
        expect_interrupted(page, pipe.chat("one two"))
        expect_answers(page, said(pipe, "one two"))
        page.goto("about:blank")
        page.context.unroute_all()


def test_the_back_button_loses_nothing(page: Page, pipe: hyperlora.Pipeline) -> None:
    answers = fill(page, pipe)
    page.goto("about:blank")
    page.go_back()
    expect_filled(page, answers)


# ---- the shelf and the conversations ----


def rows(page: Page, *names: str, selected: str) -> None:
    """The shelf is that, below "No adapter"."""
    expect(page.locator("#shelf label")).to_have_text(["No adapter", *names])
    expect(page.locator("#shelf label.selected")).to_have_text(selected)


def test_an_adapter_is_renamed_duplicated_moved_deleted_and_edited_by_mouse(
    page: Page, pipe: hyperlora.Pipeline
) -> None:
    generate(page, ADD)
    generate(page, REVERSE)
    pick(page, "Rename")
    page.get_by_label("Name").fill(HOSTILE)
    page.get_by_label("Name").press("Enter")
    rows(page, HOSTILE, ADD, selected=HOSTILE)
    send(page, "one two")
    expect_answers(page, said(pipe, "one two", REVERSE, HOSTILE))
    pick(page, "Duplicate")
    rows(page, HOSTILE, f"{HOSTILE} (copy)", ADD, selected=f"{HOSTILE} (copy)")
    pick(page, "Move down")
    rows(page, HOSTILE, ADD, f"{HOSTILE} (copy)", selected=f"{HOSTILE} (copy)")
    page.locator("#shelf label", has_text=ADD).click()
    pick(page, "Delete")
    rows(page, HOSTILE, f"{HOSTILE} (copy)", selected=f"{HOSTILE} (copy)")
    expect(page.locator("#note")).to_contain_text(f"“{ADD}” is deleted.")
    page.get_by_role("button", name="Undo").first.click()
    page.reload()
    rows(page, HOSTILE, ADD, f"{HOSTILE} (copy)", selected=ADD)
    pick(page, "Edit description")
    expect(page.locator("#description textarea")).to_have_value(ADD)
    expect(page.locator("#description textarea")).to_be_focused()
    expect(page.locator("#shelf img, #shelf b, #chat b, #conversation b")).to_have_count(0)


def test_the_shelf_by_keyboard(page: Page) -> None:
    for description in (ADD, REVERSE, "Third."):
        generate(page, description)
    page.get_by_role("button", name="Blend").focus()
    page.keyboard.press("Tab")
    expect(page.locator("#shelf :checked")).to_be_focused()  # one stop for all rows
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    rows(page, "Third.", REVERSE, ADD, selected=ADD)
    page.keyboard.press("Alt+ArrowUp")
    rows(page, "Third.", ADD, REVERSE, selected=ADD)
    expect(page.locator("#note")).to_have_text(f"“{ADD}” is number 2 of 3.")
    page.keyboard.press("Tab")
    expect(page.locator("#shelf .more")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="Rename")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#shelf .more")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.keyboard.type("Sums")
    page.keyboard.press("Enter")
    rows(page, "Third.", "Sums", REVERSE, selected="Sums")
    expect(page.locator("#shelf :checked")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowUp")  # from the first to the last
    expect(page.get_by_role("menuitem", name="Delete")).to_be_focused()
    page.keyboard.press("Enter")
    rows(page, "Third.", REVERSE, selected=REVERSE)
    expect(page.locator("#shelf :checked")).to_be_focused()


def test_each_adapter_has_a_strength_of_its_own(page: Page, pipe: hyperlora.Pipeline) -> None:
    strength = page.locator("#strength input[type=number]")
    expect(strength).to_be_disabled()  # there is nothing that it could scale
    generate(page, ADD)
    strength.fill("0.5")
    generate(page, REVERSE)
    expect(strength).to_have_value("1")
    page.locator("#shelf label", has_text=ADD).click()
    expect(strength).to_have_value("0.5")
    send(page, "one two")
    expect_answers(page, said(pipe, "one two", ADD, f"{ADD} · strength 0.5", strength=0.5))
    norm = pipe.adapt(ADD).norm()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.hyperlora.config, "norm_range", (0.5 * norm, 2 * norm))
        strength.fill("-3")
        expect(page.locator("#status")).to_contain_text("the answers may fall apart")
        page.get_by_label("Reset to default value").click()
        expect(page.locator("#status")).to_be_empty()
    page.locator("#retry").click()
    expect_answers(page, said(pipe, "one two", ADD))


def test_conversations_each_have_their_adapter(page: Page, pipe: hyperlora.Pipeline) -> None:
    conversation = page.get_by_label("Conversation", exact=True)
    generate(page, ADD)
    send(page, "one two")
    adding = said(pipe, "one two", ADD)
    expect_answers(page, adding)
    page.locator("#new_chat").click()
    expect(page.locator("#chat .message-row")).to_have_count(0)
    generate(page, REVERSE)
    send(page, "three")
    expect_answers(page, said(pipe, "three", REVERSE))
    conversation.select_option("one two")
    expect_answers(page, adding)
    rows(page, REVERSE, ADD, selected=ADD)
    pick(page, "Rename", "#chat_menu")
    page.get_by_label("Name").fill(HOSTILE)
    page.get_by_label("Name").press("Enter")
    page.reload()
    expect(conversation.locator("option:checked")).to_have_text(HOSTILE)
    expect_answers(page, adding)
    pick(page, "Delete", "#chat_menu")
    expect(page.locator("#chat .message-row")).to_have_count(0)
    expect(conversation.locator("option")).to_have_text(["New conversation", "three"])
    page.locator("#chat_note button").click()
    expect_answers(page, adding)
    with slow(pipe, 1):
        send(page, "one two")
        expect(conversation).to_be_disabled()
        page.get_by_role("button", name="Stop").click()
        expect(conversation).to_be_enabled()


def second_tab(page: Page, url: str) -> Page:
    other = page.context.new_page()
    other.goto(url)
    expect(other.locator("#generate")).to_be_enabled()
    return other


def test_tabs_do_not_overwrite_each_other(page: Page, url: str, pipe: hyperlora.Pipeline) -> None:
    generate(page, ADD)
    send(page, "one two")
    expect_answers(page, said(pipe, "one two", ADD))
    other = second_tab(page, url)
    rows(other, ADD, selected="No adapter")
    generate(other, REVERSE)
    rows(page, REVERSE, ADD, selected=ADD)  # each has its own selected
    other.get_by_label("Conversation", exact=True).select_option("one two")
    expect_answers(other, said(pipe, "one two", ADD))
    send(page, "three")  # what one tab is answered, the other sees
    answers = said(pipe, "one two", ADD), said(pipe, "three", ADD)
    expect_answers(page, *answers)
    expect_answers(other, *answers)
    with slow(pipe, 1):
        send(page, "from the one")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        expect(other.locator("#chat .user.message .md").last).to_have_text("from the one")
        send(other, "from the other")
        for tab in (page, other):
            tab.get_by_role("button", name="Stop").click()
            expect(tab.get_by_role("button", name="Send")).to_be_visible()
    # From here on they are two conversations, the other's with what it saw.
    kept = sorted([turn["question"] for turn in chat["turns"]] for chat in stored(page, "chat"))
    before = ["one two", "three", "from the one"]
    assert kept == [before, [*before, "from the other"]]


def test_forget_everything_is_asked_first_and_meant_in_all_tabs(page: Page, url: str, pipe: hyperlora.Pipeline) -> None:
    generate(page, ADD)
    send(page, "one two")
    expect_answers(page, said(pipe, "one two", ADD))
    other = second_tab(page, url)
    page.locator("#forget").click()
    page.get_by_role("button", name="Leave them").click()
    rows(page, ADD, selected=ADD)
    other.locator("#description textarea").fill("Half of a descr")
    with slow(pipe, 1):
        send(other, "from the other")
        wait_until(lambda: len(stored(page, "chat")) == 2)
        page.locator("#forget").click()
        page.get_by_role("button", name="Forget", exact=True).click()
        for tab in (page, other):
            rows(tab, selected="No adapter")
            expect(tab.get_by_role("button", name="Send")).to_be_visible()
            expect(tab.locator("#chat .message-row")).to_have_count(0)
            expect(tab.locator("#description textarea")).to_have_value("")
    assert stored(page, "chat") == stored(page, "adapter") == []
    expect(page.locator("#note")).to_have_text("All is forgotten.")
    send(other, "one two")
    expect_answers(other, said(pipe, "one two"))


def test_an_adapter_that_is_made_while_all_is_forgotten_is_not_kept(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(pipe, monkeypatch) as go:
        page.locator("#description textarea").fill("Forget this one.")
        page.locator("#generate").click()
        expect(page.locator("#status .done")).to_have_text("Making the adapter…")
        page.locator("#forget").click()
        page.get_by_role("button", name="Forget", exact=True).click()
        go.set()
        expect(page.locator("#status .done")).to_have_text(re.compile(r"Made in \d+ ms\."))
    generate(page, ADD)
    rows(page, ADD, selected=ADD)


def test_what_is_not_to_be_kept_is_gone_with_the_tab(page: Page, url: str, pipe: hyperlora.Pipeline) -> None:
    generate(page, ADD)
    page.get_by_label("Do not keep").check()
    generate(page, REVERSE)
    send(page, "one two")
    answer = said(pipe, "one two", REVERSE)
    expect_answers(page, answer)
    page.reload()
    expect_answers(page, answer)
    rows(page, REVERSE, ADD, selected=REVERSE)
    other = second_tab(page, url)
    rows(other, ADD, selected="No adapter")
    expect(other.get_by_label("Do not keep")).to_be_checked()
    assert stored(page, "chat") == []
    page.get_by_label("Do not keep").uncheck()
    rows(other, REVERSE, ADD, selected="No adapter")
    assert [chat["turns"][0]["question"] for chat in stored(page, "chat")] == ["one two"]


def keep(page: Page, **entries: object) -> None:
    """Put entries where the browser keeps them, and load the page again."""
    put = "(entries) => { for (const [key, text] of Object.entries(entries)) localStorage[`hyperlora.${key}`] = text; }"
    page.evaluate(
        put,
        {
            key.replace("_", "."): value if isinstance(value, str) else json.dumps(value)
            for key, value in entries.items()
        },
    )
    page.reload()
    expect(page.locator("#generate")).to_be_enabled()


def test_a_full_store_says_so_and_loses_nothing(page: Page, pipe: hyperlora.Pipeline) -> None:
    turn = {"question": "large", "by": "", "answer": "a" * 1_999_700, "end": "stop"}
    keep(page, chat_large={"turns": [turn]})
    expect(page.locator("#bounds")).to_be_empty()
    for description in (ADD, REVERSE):
        generate(page, description)
    expect(page.locator("#bounds")).to_contain_text("room for the page is full (4 MB)")
    send(page, "one two")
    expect_answers(page, said(pipe, "one two", REVERSE))
    page.reload()
    expect(page.locator("#bounds")).to_contain_text("what is new goes when the tab is closed")
    rows(page, REVERSE, ADD, selected=REVERSE)
    expect_answers(page, said(pipe, "one two", REVERSE))
    page.get_by_label("Conversation", exact=True).select_option("large")
    pick(page, "Delete", "#chat_menu")
    expect(page.locator("#bounds")).to_be_empty()  # there is room again, and all moves in
    assert {adapter["description"] for adapter in stored(page, "adapter")} == {ADD, REVERSE}
    assert [chat["turns"][0]["question"] for chat in stored(page, "chat")] == ["one two"]


def test_a_full_shelf_says_which_one_would_go(page: Page) -> None:
    keep(page, **{f"adapter_{i}": {"description": f"Number {i}.", "place": i} for i in range(1, 32)})
    expect(page.locator("#bounds")).to_be_empty()
    generate(page, ADD)
    expect(page.locator("#bounds")).to_contain_text("the next new adapter takes the place of “Number 1.”")
    page.locator("#shelf .more").click()
    expect(page.get_by_role("menuitem", name="Duplicate")).to_be_disabled()
    page.keyboard.press("Escape")
    generate(page, REVERSE)
    rows(page, REVERSE, ADD, *(f"Number {i}." for i in range(31, 1, -1)), selected=REVERSE)
    expect(page.locator("#bounds")).to_contain_text("“Number 2.”")


def test_what_is_damaged_in_the_browser_breaks_nothing(page: Page, pipe: hyperlora.Pipeline) -> None:
    page.evaluate("sessionStorage['hyperlora.tab'] = JSON.stringify({chat: {}, adapter: 3, message: [1]})")
    keep(
        page,
        adapter_a="{",
        adapter_b="null",
        adapter_c=3,
        adapter_d={"description": ["a"]},
        adapter_e={"description": "a" * 100_000},
        adapter_f={"description": HOSTILE, "name": {}, "strength": "much", "place": "1", "id": "a", "turns": 3},
        adapter_g={"description": ADD, "name": "\ud83d", "strength": -7},
        chat_a="[" * 100_000,
        chat_b={"turns": {}},
        chat_c={"turns": [None]},
        chat_d={"turns": [{"question": 1, "by": "", "answer": "", "end": ""}]},
        chat_e={"turns": [{"question": HOSTILE, "by": HOSTILE, "answer": HOSTILE, "end": HOSTILE}], "adapter": ["a"]},
        chat_f={"turns": [{"question": "odd", "by": "", "answer": "", "end": "", "more": 1}]},
        chat_g={"turns": [], "name": "\ud83d"},
    )
    expect(page.locator("#shelf label")).to_have_count(3)
    conversation = page.get_by_label("Conversation", exact=True)
    expect(conversation.locator("option")).to_have_count(4)
    conversation.select_option(HOSTILE)
    expect(page.locator("#chat .md")).to_have_text([HOSTILE, HOSTILE, f"{HOSTILE} · {HOSTILE}Continue"])
    expect(page.locator("#shelf img, #shelf b, #chat img, #chat b")).to_have_count(0)
    page.locator("#shelf label").filter(has_text=HOSTILE).click()
    expect(page.locator("#strength input[type=number]")).to_have_value("1")
    conversation.select_option("odd")
    expect(page.locator(".toast-body")).to_contain_text("is damaged: delete it")
    page.locator("#new_chat").click()
    send(page, "one two")
    expect(page.locator("#chat .bot.message")).to_have_count(1)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


# ---- the first minute ----


def test_an_example_by_keyboard_on_a_phone_ends_at_the_chat(
    browser: Browser, url: str, pipe: hyperlora.Pipeline
) -> None:
    with visit(browser, url, viewport={"width": 375, "height": 700}) as page:
        expect(page.locator("#generate")).to_be_enabled()
        expect(page.get_by_role("button", name="Send")).not_to_be_in_viewport()
        page.locator("#examples button").first.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)
        page.get_by_role("button", name="Send").click()
        example = load_examples()[0]
        expect_answers(page, said(pipe, example["message"], example["description"]))


def test_card_and_readme_are_read_on_the_page(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "preset", get_preset("mini"))
    for name, heading in (("Card", "HyperLoRA mini"), ("README", "HyperLoRA")):
        page.get_by_role("button", name=name, exact=True).click()
        panel = page.get_by_role("dialog")
        expect(panel.locator("h1")).to_have_text(heading)
        expect(panel.locator("img, a[href]:not([target=_blank])")).to_have_count(0)
        page.keyboard.press("Escape")
        expect(panel).to_have_count(0)
    paper = page.get_by_role("link", name="Paper")
    assert paper.get_attribute("href") == "https://arxiv.org/abs/2506.06105"
    assert (paper.get_attribute("target"), paper.get_attribute("rel")) == ("_blank", "noopener noreferrer")


def test_light_or_dark_is_remembered(page: Page) -> None:
    body, light = page.locator("body"), "rgb(255, 255, 255)"
    expect(body).to_have_css("background-color", light)
    page.locator("#theme").press("Enter")
    expect(body).not_to_have_css("background-color", light)
    page.reload()
    expect(page.locator("#theme")).to_have_attribute("aria-pressed", "true")
    expect(body).not_to_have_css("background-color", light)
    page.locator("#theme").click()
    expect(body).to_have_css("background-color", light)


def test_an_adapter_is_shared_by_link(page: Page, browser: Browser, url: str, pipe: hyperlora.Pipeline) -> None:
    """Its description is shown before anything is made of it; nothing of it is in what the server is asked for."""
    generate(page, "Write <b>it</b> in capitals.")
    page.locator("#strength input[type=number]").fill("-0.5")
    page.get_by_label("More for Write <b>it</b> in capitals.").click()
    page.get_by_role("menuitem", name="Copy link").click()
    link = page.get_by_label("Link", exact=True).input_value()
    assert link.startswith(f"{url.rstrip('/')}/#adapter=") and len(link) < 2100
    with visit(browser, url, link[link.index("#") :]) as other:
        note = other.locator("#note")
        expect(note).to_contain_text("“Write <b>it</b> in capitals.”, at strength -0.5.")
        expect(other.locator("#shelf label")).to_have_count(1)  # no adapter
        assert other.url == url
        other.get_by_role("button", name="Make it").click()
        expect(other.locator("#shelf label.selected")).to_have_text("Write <b>it</b> in capitals.")
        expect(other.locator("#strength input[type=number]")).to_have_value("-0.5")
        send(other, "one two")
        by = "Write <b>it</b> in capitals. · strength -0.5"
        expect_answers(other, said(pipe, "one two", "Write <b>it</b> in capitals.", by, strength=-0.5))


@pytest.mark.parametrize(
    ("fragment", "sentence"),
    [
        ("#adapter=eyJ", "The link is damaged"),
        ("#adapter=<img src=x onerror=alert(1)>", "The link is damaged"),
        (Recipe(REVERSE).link("0" * 12), "The link is for the checkpoint 000000000000"),
    ],
)
def test_a_link_that_is_no_good_says_so(browser: Browser, url: str, fragment: str, sentence: str) -> None:
    with visit(browser, url, fragment) as page:
        expect(page.locator("#note")).to_contain_text(sentence)
        expect(page.locator("#shelf label")).to_have_count(1)


def compared(page: Page) -> list[str]:
    """The names and the answers of both sides."""
    expect(page.locator("#left_wins")).to_be_enabled()
    names = [page.locator(side).get_attribute("data-by") for side in ("#left", "#right")]
    return names + [page.locator(f"{side} .verbatim").inner_text() for side in ("#left", "#right")]


def test_two_answers_to_one_message_are_compared(page: Page, pipe: hyperlora.Pipeline) -> None:
    """The selected adapter against the base, then against that with its description, and then against another one."""
    generate(page, ADD)
    generate(page, REVERSE)
    page.get_by_role("button", name="Compare").click()
    base, reverse, add = (pipe.chat("one two", adapter) for adapter in (None, pipe.adapt(REVERSE), pipe.adapt(ADD)))
    page.get_by_label("Message to both").fill("one two")
    page.get_by_role("button", name="Ask both").click()
    assert compared(page) == [REVERSE, "No adapter", reverse, base]
    prompted = f"No adapter, “{REVERSE}” in its prompt"
    page.get_by_role("combobox", name="Right").select_option(label=prompted)
    page.get_by_role("button", name="Ask both").click()
    expect(page.locator("#right")).to_have_attribute("data-by", prompted)
    assert compared(page)[3] == pipe.chat(f"{REVERSE}\none two")
    page.get_by_role("combobox", name="Right").select_option(label=ADD)
    page.get_by_label("Message to both").press("Enter")
    expect(page.locator("#right")).to_have_attribute("data-by", ADD)
    assert compared(page) == [REVERSE, ADD, reverse, add]
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_label("Message to both")).to_be_hidden()
    send(page, "one two")
    expect_answers(page, said(pipe, "one two", REVERSE))


def test_a_vote_is_for_an_answer_whose_giver_is_not_named_before(page: Page, pipe: hyperlora.Pipeline) -> None:
    generate(page, REVERSE)
    base, reverse = pipe.chat("one two"), pipe.chat("one two", pipe.adapt(REVERSE))
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Guess").check()
    shown = set()
    for vote in range(1, 30):
        page.get_by_label("Message to both").fill("one two")
        page.get_by_role("button", name="Ask both").click()
        expect(page.locator("#left")).to_have_attribute("data-by", "Answer 1")
        names = compared(page)
        assert names[:2] == ["Answer 1", "Answer 2"] and {*names[2:]} == {base, reverse}
        page.get_by_role("button", name="Left is better" if names[2] == reverse else "Right is better").click()
        expect(page.locator("#verdict")).to_have_text(f"“No adapter” 0, both alike 0, “{REVERSE}” {vote}")
        expect(page.locator("#left_wins")).to_be_disabled()
        left = page.locator("#left").get_attribute("data-by")
        assert left == (REVERSE if names[2] == reverse else "No adapter")
        shown.add(left)
        if len(shown) == 2:
            break
    assert len(shown) == 2  # shuffled
    page.reload()
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Message to both").fill("one two")
    page.get_by_role("button", name="Ask both").click()
    compared(page)
    page.get_by_role("button", name="Both alike").click()
    expect(page.locator("#verdict")).to_have_text(f"“No adapter” 0, both alike 1, “{REVERSE}” {vote}")


def test_what_cannot_be_compared_says_so_and_is_not_voted_on(page: Page) -> None:
    generate(page, REVERSE)
    page.locator("#strength input[type=number]").fill("0.5")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Ask both").click()
    for side in ("#left", "#right"):
        expect(page.locator(f"{side} .error")).to_contain_text("The message is empty")
    expect(page.locator("#halt")).to_be_hidden()
    expect(page.locator("#left")).to_have_attribute("data-by", f"{REVERSE} · strength 0.5")
    expect(page.locator("#left_wins")).to_be_disabled()


def test_a_server_that_goes_ends_a_comparison(browser: Browser, pipe: hyperlora.Pipeline) -> None:
    with visit_for_a_while(browser, pipe, 0.5) as (page, end_server):
        page.get_by_role("button", name="Compare").click()
        page.get_by_label("Message to both").fill("one two")
        page.get_by_role("button", name="Ask both").click()
        for side in ("#left", "#right"):
            expect(page.locator(f"{side} .verbatim")).not_to_have_text("…")
        end_server()
        expect(page.locator("#verdict")).to_have_text("The server did not answer: ask again.")
        expect(page.locator("#halt")).to_be_hidden()


def test_two_answers_are_stopped_together(page: Page, pipe: hyperlora.Pipeline) -> None:
    page.get_by_role("button", name="Compare").click()
    with slow(pipe, 1):
        page.get_by_label("Message to both").fill("one two")
        page.get_by_role("button", name="Ask both").click()
        for side in ("#left", "#right"):
            expect(page.locator(f"{side} .verbatim")).not_to_have_text("…")
        page.locator("#halt").click()
        for side in ("#left", "#right"):
            expect(page.locator(side)).to_contain_text("Stopped.")
    expect(page.locator("#halt")).to_be_hidden()


def test_two_visitors_have_their_own_shelves(page: Page, browser: Browser, url: str) -> None:
    generate(page, REVERSE)
    with visit(browser, url) as other:
        expect(other.locator("#generate")).to_be_enabled()
        generate(other, ADD)
        expect(other.locator("#shelf label")).to_have_text(["No adapter", ADD])
        expect(page.locator("#shelf label")).to_have_text(["No adapter", REVERSE])


def test_five_adapters_are_in_view(page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 720})
    for i in range(5):
        generate(page, f"Write the {i + 1}. letter of the word.")
    page.locator("#shelf label", has_text="No adapter").click()
    for row in page.locator("#shelf label").all():
        expect(row).to_be_in_viewport(ratio=1)
    assert page.locator("#shelf").evaluate("(shelf) => shelf.scrollHeight <= shelf.clientHeight")


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1920, 1080), (390, 844), (320, 640)])
def test_it_fits(page: Page, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    for i in range(8):
        generate(
            page, f"Write the {i + 1}. letter of a rather long sentence about nothing in particular, again and again."
        )
    size = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert size[0] <= width
    if width > 900:  # one screen, with everything in it
        assert size[1] <= height
        shelf, tools = page.locator("#shelf").bounding_box(), page.locator("#tools").bounding_box()
        assert shelf["y"] + shelf["height"] <= tools["y"]
        for name in ("to_export", "in_prompt", "message", "clear"):
            box = page.locator(f"#{name}").bounding_box()
            assert box["y"] + box["height"] <= height


def test_the_page_is_there_before_the_model_and_becomes_ready_by_itself(
    browser: Browser, pipe: hyperlora.Pipeline
) -> None:
    loaded = threading.Event()

    def load() -> hyperlora.Pipeline:
        loaded.wait()
        return pipe

    model = Model(load)
    with serving(model) as url, visit(browser, url) as page:
        model.start()
        expect(page.locator("#generate")).to_have_text("Loading the model…")
        expect(page.locator("#generate")).to_be_disabled()
        loaded.set()
        expect(page.locator("#generate")).to_have_text("Generate")
        expect(page.locator("#generate")).to_be_enabled()


def test_a_large_download_is_asked_for_and_can_be_cancelled(browser: Browser, pipe: hyperlora.Pipeline) -> None:
    def load() -> hyperlora.Pipeline:
        model.ask("Big-7B needs a download of 14.5 GB; 120.0 GB of the disk are free.")
        with pytest.raises(Cancelled):
            for i in range(100_000):
                model.report(6e9 + i, 14.5e9)
                time.sleep(0.05)
        return pipe

    model = Model(load)
    with serving(model) as url, visit(browser, url) as page:
        model.start()
        panel = page.locator("#download")
        expect(panel).to_contain_text("Big-7B needs a download of 14.5 GB")
        expect(page.locator("#generate")).to_have_text("Waiting for your choice…")
        expect(page.locator("#refuse")).to_have_text("Use a small model instead")
        page.locator("#allow").click()
        expect(panel).to_contain_text("6.0 GB of 14.5 GB")
        expect(page.locator("#allow")).to_have_count(0)
        expect(page.locator("#generate")).to_have_text("Downloading the model…")
        expect(page.locator("#refuse")).to_have_text("Cancel")
        page.locator("#refuse").click()
        expect(page.locator("#generate")).to_have_text("Generate")
        expect(panel).to_be_hidden()


def test_a_model_that_cannot_be_loaded_is_one_sentence(browser: Browser) -> None:
    def load() -> hyperlora.Pipeline:
        raise UserError("The base model is <damaged>.")

    model = Model(load)
    with serving(model) as url, visit(browser, url) as page:
        model.start()
        expect(page.locator("#status .error")).to_have_text("The base model is <damaged>.")
        expect(page.locator("#generate")).to_be_disabled()
