"""The conversation in a real browser: how answers are given, what is done with them, and the conversation as a file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import hyperlora
from hyperlora.ui.handlers import OTHER, SAMPLED
from tests.browser.visit import HOSTILE, expect_answers, pick, said, send, stored
from tests.ui.visitor import slow

USER = {"role": "user", "content": "one two"}


def more(page: Page, **fields: str) -> None:
    """Fill in what is under "More", and close it."""
    page.locator("#more_button").click()
    for name, text in fields.items():
        page.locator(f"#set_{name}").fill(text)
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()


def test_settings_are_for_all_answers_and_are_kept_with_presets(page: Page, pipe: hyperlora.Pipeline) -> None:
    expect(page.locator("#settings")).to_be_hidden()
    more(page, begin="So:", temperature="1", seed="7", max_new_tokens="9")
    options = {"do_sample": True, "temperature": 1.0, "seed": 7, "max_new_tokens": 9}
    wanted = "So:" + pipe.chat([USER, {"role": "assistant", "content": "So:"}], **options)
    send(page, "one two")
    expect_answers(page, (wanted, "No adapter · cut off at the token limit"))
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Message to both").fill("one two")
    page.get_by_role("button", name="Ask both").click()
    for side in ("left", "right"):
        expect(page.locator(f"#{side} .verbatim")).to_have_text(wanted, use_inner_text=False)
    page.reload()
    page.locator("#more_button").click()
    expect(page.locator("#set_begin")).to_have_value("So:")
    expect(page.locator("#set_top_p")).to_have_attribute("placeholder", "1")
    page.get_by_label("Save as").fill(HOSTILE)
    page.locator("#preset_save").click()
    page.locator("#set_none").click()
    expect(page.locator("#set_begin")).to_have_value("")
    page.get_by_label("Preset", exact=True).select_option(HOSTILE)
    expect(page.locator("#set_begin")).to_have_value("So:")
    page.locator("#preset_delete").click()
    expect(page.locator("#preset option")).to_have_text(["Presets"])
    page.locator("#preset_note").get_by_role("button", name="Undo").click()
    expect(page.locator("#preset option")).to_have_text(["Presets", HOSTILE])
    expect(page.locator("#settings img, #settings b")).to_have_count(0)


def test_a_setting_that_is_wrong_is_said_beside_it_and_stays(page: Page) -> None:
    more(page, temperature="hot")
    send(page, "one two")
    expect(page.locator(".toast-body")).to_contain_text("The temperature must be a number")
    expect(page.locator("#message textarea")).to_have_value("one two")
    page.reload()
    page.locator("#more_button").click()
    expect(page.locator("#temperature_said")).to_have_text("The temperature must be a number from 0 to 5.")
    expect(page.locator("#set_temperature")).to_have_value("hot")
    page.locator("#set_temperature").fill("0.5")
    page.locator("#set_seed").focus()
    expect(page.locator("#temperature_said")).to_be_empty()


def test_what_is_damaged_in_the_kept_settings_breaks_nothing(page: Page, pipe: hyperlora.Pipeline) -> None:
    for kept in ("{", "3", '{"now": 3, "presets": {"a": null, "b": {"seed": [1]}}}', '{"now": {"system": {}}}'):
        page.evaluate("(kept) => { localStorage['hyperlora.settings'] = kept; }", kept)
        page.reload()
        expect(page.locator("#generate")).to_be_enabled()
    send(page, "one two")
    expect_answers(page, said(pipe, "one two"))


def test_answers_to_a_message_are_paged_through_and_the_conversation_goes_on_from_the_one_that_is_shown(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "multi_turn", True)
    more(page, seed="5", max_new_tokens="12")
    send(page, "one two")
    likeliest, by = said(pipe, "one two", max_new_tokens=12)
    page.locator("#retry").click()
    sampled = pipe.chat("one two", seed=6, max_new_tokens=12, **OTHER)
    expect_answers(page, (sampled, by.replace("No adapter", f"No adapter{SAMPLED}")))
    expect(page.locator("#chat .place")).to_have_text("2/2")
    expect(page.get_by_title("The next answer")).to_be_disabled()
    page.reload()  # both are kept
    page.get_by_title("The answer before").click()
    expect(page.locator("#chat .place")).to_have_text("1/2")
    expect_answers(page, (likeliest, by))
    send(page, "three")
    asked = [USER, {"role": "assistant", "content": likeliest}, {"role": "user", "content": "three"}]
    expect_answers(page, (likeliest, by), (pipe.chat(asked, max_new_tokens=12), by))
    expect(page.locator("#chat .place")).to_be_hidden()
    page.locator("#undo").click()
    page.get_by_title("The next answer").click()
    expect_answers(page, (sampled, by.replace("No adapter", f"No adapter{SAMPLED}")))
    assert [len(turn["others"]) for turn in stored(page, "chat")[0]["turns"]] == [1]


def test_an_answer_that_was_stopped_goes_on(page: Page, pipe: hyperlora.Pipeline) -> None:
    with slow(pipe, 1):
        send(page, "one two")
        expect(page.locator("#chat .bot.message .md").first).not_to_have_text("…")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#chat .by")).to_have_text("No adapter · stopped")
    part = page.locator("#chat .bot.message .md").first.text_content()
    page.locator("#message textarea").fill("half typed")
    page.get_by_role("button", name="Continue").click()
    rest = pipe.chat([USER, {"role": "assistant", "content": part}])
    expect_answers(page, (part.rstrip(" ") + rest, "No adapter · cut off at the token limit"))
    expect(page.locator("#message textarea")).to_have_value("half typed")


def test_a_message_is_edited_and_what_came_after_can_come_back(page: Page, pipe: hyperlora.Pipeline) -> None:
    before = []
    for message in ("one", "two", "three"):
        send(page, message)
        before.append(said(pipe, message))
        expect_answers(page, *before)
    page.get_by_title("Edit the message").nth(1).click()
    expect(page.locator("#message textarea")).to_have_value("two")
    page.get_by_role("button", name="Leave it").click()
    expect(page.locator("#message textarea")).to_have_value("")
    page.get_by_title("Edit the message").nth(1).click()
    send(page, " ")
    expect(page.locator(".toast-body")).to_contain_text("The message is empty")  # and nothing has left
    expect_answers(page, *before)
    send(page, "two, edited")
    expect_answers(page, before[0], said(pipe, "two, edited"))
    page.locator("#chat_note").get_by_role("button", name="Undo").click()
    expect_answers(page, *before)
    expect(page.locator("#chat .user.message .md")).to_have_text(["one", "two", "three"])


CODE = "Look:\n\n```py\nif x:\n\n\treturn  <b>\n```\n"


def test_answers_and_code_are_copied_as_they_were_written(
    page: Page, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(list):
        finish_reason, tokens = "stop", 9

        def stop(self) -> None: ...

    monkeypatch.setattr(pipe, "markdown", True)
    monkeypatch.setattr(pipe, "chat", lambda *_, **__: Stream([CODE]))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    send(page, "code")
    for title, text in (("Copy the answer", CODE), ("Copy the code", "if x:\n\n\treturn  <b>\n")):
        page.get_by_title(title).click()
        expect(page.get_by_title("Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == text
        expect(page.get_by_title("Copied")).to_have_count(0)
    monkeypatch.undo()


@pytest.fixture
def filled(page: Page, pipe: hyperlora.Pipeline) -> Iterator[Page]:
    """A conversation of two answers to one message."""
    more(page, seed="5")
    send(page, "one two")
    expect_answers(page, said(pipe, "one two"))
    page.locator("#retry").click()
    expect(page.locator("#chat .place")).to_have_text("2/2")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    yield page


def save(page: Page, item: str) -> str:
    with page.expect_download() as download:
        pick(page, item, "#chat_menu")
    assert re.fullmatch(r"one-two\.(json|md)", download.value.suggested_filename)
    return Path(download.value.path()).read_text()


def bring(page: Page, text: str) -> None:
    with page.expect_file_chooser() as chooser:
        pick(page, "Open a JSON file", "#chat_menu")
    chooser.value.set_files({"name": "a.json", "mimeType": "application/json", "buffer": text.encode()})


def test_a_conversation_is_saved_as_json_and_markdown_and_opened_again(filled: Page, pipe: hyperlora.Pipeline) -> None:
    sampled = pipe.chat("one two", seed=6, **OTHER)
    assert f"# one two\n\n## You\n\none two\n\n## No adapter{SAMPLED}\n\n{sampled}" in save(filled, "Save as Markdown")
    text = save(filled, "Save as JSON")
    kept = json.loads(text)["turns"]
    bring(filled, text.replace('"one two"', json.dumps(HOSTILE)))
    expect(filled.get_by_label("Conversation", exact=True).locator("option")).to_have_count(2)
    expect(filled.locator("#chat .user.message .md")).to_have_text(HOSTILE)
    filled.get_by_title("The answer before").click()
    expect_answers(filled, said(pipe, "one two"))
    expect(filled.locator("#chat img, #chat b")).to_have_count(0)
    assert sorted(len(chat["turns"][0]["others"]) for chat in stored(filled, "chat")) == [1, 1]
    assert kept[0]["answer"] == sampled


NO_CONVERSATIONS = [
    "",
    "{",
    "[" * 100_000,
    "null",
    '{"turns": []}',
    '{"turns": [null]}',
    '{"turns": [{"question": "a"}, {"question": 3}]}',
    '{"turns": [{"question": "\\ud83d"}]}',
    '{"turns": [{"question": "a", "speed": "<b>"}]}',
    '{"turns": [{"question": "a", "others": [3, null]}]}',
    '{"turns": [{"question": "a", "place": 1}]}',
    "a" * 2_000_001,
]


def test_a_file_that_is_no_conversation_is_one_sentence(page: Page) -> None:
    for text in NO_CONVERSATIONS:
        page.evaluate("document.querySelector('#chat_note').replaceChildren()")
        bring(page, text)
        sentence = "larger than 2 MB" if len(text) > 2_000_000 else "“a.json” is no conversation that was saved here"
        expect(page.locator("#chat_note")).to_contain_text(sentence)
    assert stored(page, "chat") == []
