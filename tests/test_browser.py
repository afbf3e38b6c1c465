"""The page in a real browser, on the tiny model."""

import os
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import hyperlora
from hyperlora.errors import UserError
from hyperlora.hub import Cancelled
from hyperlora.presets import load_examples
from hyperlora.ui.model import Model
from tests.test_app import ADD, REVERSE, serving, slow, wait_until

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
expect.set_options(timeout=30_000)  # a busy machine is no failure
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: install it, or name it in CHROMIUM")


@pytest.fixture(scope="module")
def pipe(tiny_base: Path, tiny_hyperlora: Path) -> Iterator[hyperlora.Pipeline]:
    pipe = hyperlora.pipeline(None, base=tiny_base, hyperlora=tiny_hyperlora)
    pipe.multi_turn = False  # as the bundled model
    yield pipe
    pipe.close()


@pytest.fixture(scope="module")
def url(pipe: hyperlora.Pipeline) -> Iterator[str]:
    model = Model(lambda: pipe)
    model.start()
    with serving(model) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, ready; the test fails if it logs an error or asks another host for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    complaints: list[str] = []

    def complain(text: str) -> None:
        # What Gradio's own script says when a page is left in the middle of an answer.
        if "AbortError" not in text and "errored out" not in text:
            complaints.append(text)

    page.on("console", lambda message: complain(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complain(str(error)))
    page.on("request", lambda request: None if request.url.startswith((url, "data:")) else complain(request.url))
    page.goto(url)
    expect(page.locator("#generate")).to_be_enabled()
    yield page
    context.close()
    assert complaints == []


def generate(page: Page, description: str) -> None:
    page.locator("#description textarea").fill(description)
    page.locator("#generate").click()
    expect(page.locator("#shelf label.selected")).to_have_text(description)


def send(page: Page, message: str) -> None:
    page.locator("#message textarea").fill(message)
    page.get_by_role("button", name="Send").click()


def expect_answers(page: Page, *answers: tuple[str, str]) -> None:
    """The finished conversation's answers and who gave them."""
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    bubbles = page.locator("#chat .bot.message")
    expect(bubbles).to_have_count(len(answers))
    for i, (answer, by) in enumerate(answers):
        parts = bubbles.nth(i).locator(".md")
        expect(parts).to_have_count(2)
        assert parts.nth(0).text_content().strip() == (answer.strip() or "(no text)")
        assert parts.nth(1).text_content() == by


def test_from_an_example_to_an_answer(page: Page, pipe: hyperlora.Pipeline) -> None:
    example = load_examples()[0]
    page.locator("#examples button").first.click()
    expect(page.locator("#description textarea")).to_have_value(example["description"])
    expect(page.locator("#message textarea")).to_have_value(example["message"])
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("Made in")
    page.get_by_role("button", name="Send").click()
    answer = pipe.chat(example["message"], adapter=pipe.adapt(example["description"]))
    expect_answers(page, (answer, example["description"]))
    expect(page.locator("#message textarea")).to_have_value("")
    expect(page.locator("#line")).to_contain_text("each message on its own")


def test_an_example_leaves_a_message_that_was_typed(page: Page) -> None:
    page.locator("#message textarea").fill("mine")
    page.locator("#examples button").nth(1).click()
    expect(page.locator("#description textarea")).to_have_value(load_examples()[1]["description"])
    expect(page.locator("#message textarea")).to_have_value("mine")


def test_adapters_are_switched_in_the_middle_of_a_conversation(page: Page, pipe: hyperlora.Pipeline) -> None:
    generate(page, REVERSE)
    generate(page, ADD)
    send(page, "one two")
    answers = [(pipe.chat("one two", adapter=pipe.adapt(ADD)), ADD)]
    expect_answers(page, *answers)
    for name, adapter in (("No adapter", None), (REVERSE, pipe.adapt(REVERSE))):
        page.locator("#shelf label", has_text=name).click()
        send(page, "one two")
        answers.append((pipe.chat("one two", adapter=adapter), name))
        expect_answers(page, *answers)


def test_the_description_is_put_in_the_prompt_by_a_switch(page: Page, pipe: hyperlora.Pipeline) -> None:
    generate(page, REVERSE)
    switch = page.get_by_label("Put the description in the prompt too")
    expect(switch).not_to_be_checked()
    switch.check()
    send(page, "one two")
    answer = pipe.chat("one two", adapter=pipe.adapt(REVERSE), describe=True)
    expect_answers(page, (answer, f"{REVERSE} · description in the prompt"))
    switch.uncheck()
    page.locator("#retry").click()
    expect_answers(page, (pipe.chat("one two", adapter=pipe.adapt(REVERSE)), REVERSE))


def test_a_double_click_makes_one_adapter(page: Page) -> None:
    page.locator("#description textarea").fill(REVERSE)
    page.locator("#generate").dblclick()
    expect(page.locator("#status")).to_contain_text("Made in")
    page.locator("#generate").click()
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
    expect_answers(page, (pipe.chat("one two"), "No adapter"))
    send(page, "   ")
    expect(page.locator(".toast-body")).to_contain_text("The message is empty")
    expect_answers(page, (pipe.chat("one two"), "No adapter"))
    expect(page.locator("#retry")).to_have_text("Retry")


def test_stop_retry_undo_and_clear(page: Page, pipe: hyperlora.Pipeline) -> None:
    stop = page.get_by_role("button", name="Stop")
    whole = pipe.chat("one two")
    with slow(pipe, 0.1):
        send(page, "one two")
        stop.click()  # the first moment that it can be
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        page.locator("#retry").click()
        expect(page.locator("#chat .bot.message .md").first).to_contain_text(whole[:3])
        expect(page.locator("#clear")).to_be_disabled()
        stop.click()
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    part = page.locator("#chat .bot.message .md").first.text_content()
    assert whole.startswith(part)
    assert part != whole
    generate(page, ADD)
    page.locator("#retry").click()
    expect_answers(page, (pipe.chat("one two", adapter=pipe.adapt(ADD)), ADD))
    page.locator("#undo").click()
    expect(page.locator("#chat .message-row")).to_have_count(0)
    expect(page.locator("#message textarea")).to_have_value("one two")
    expect(page.locator("#retry")).to_be_disabled()
    send(page, "one two")
    expect_answers(page, (pipe.chat("one two", adapter=pipe.adapt(ADD)), ADD))
    page.locator("#clear").click()
    expect(page.locator("#chat .message-row")).to_have_count(0)
    expect(page.locator("#clear")).to_be_disabled()


def test_a_reload_in_the_middle_of_an_answer_ends_it_and_the_page_works(page: Page, pipe: hyperlora.Pipeline) -> None:
    with slow(pipe, 0.5):
        send(page, "one two")
        wait_until(lambda: pipe.engine._batch.rows)
        page.reload()
        wait_until(lambda: not pipe.engine._batch.rows, 60)  # the whole answer would take longer
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator("#chat .message-row")).to_have_count(0)
    send(page, "one two")
    expect_answers(page, (pipe.chat("one two"), "No adapter"))


def test_export_downloads_the_selected_adapter(page: Page, tmp_path: Path) -> None:
    page.locator("#export").click()
    expect(page.locator(".toast-body")).to_contain_text("Select an adapter first")
    for description in (REVERSE, ADD):
        generate(page, description)
        with page.expect_download() as download:
            page.locator("#export").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        with zipfile.ZipFile(path) as archive:
            assert sorted(archive.namelist()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
            assert description in archive.read("README.md").decode()


def test_two_visitors_have_their_own_shelves(page: Page, browser: Browser, url: str) -> None:
    generate(page, REVERSE)
    other = browser.new_page()
    other.goto(url)
    expect(other.locator("#generate")).to_be_enabled()
    generate(other, ADD)
    expect(other.locator("#shelf label")).to_have_text(["No adapter", ADD])
    expect(page.locator("#shelf label")).to_have_text(["No adapter", REVERSE])
    other.close()


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
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
        for name in ("export", "in_prompt", "message", "clear"):
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
    with serving(model) as url:
        model.start()
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#generate")).to_have_text("Loading the model…")
        expect(page.locator("#generate")).to_be_disabled()
        loaded.set()
        expect(page.locator("#generate")).to_have_text("Generate")
        expect(page.locator("#generate")).to_be_enabled()
        page.close()


def test_a_large_download_is_asked_for_and_can_be_cancelled(browser: Browser, pipe: hyperlora.Pipeline) -> None:
    def load() -> hyperlora.Pipeline:
        model.ask("Big-7B needs a download of 14.5 GB; 120.0 GB of the disk are free.")
        with pytest.raises(Cancelled):
            for i in range(100_000):
                model.report(6e9 + i, 14.5e9)
                time.sleep(0.05)
        return pipe

    model = Model(load)
    with serving(model) as url:
        model.start()
        page = browser.new_page()
        page.goto(url)
        panel = page.locator("#download")
        expect(panel).to_contain_text("Big-7B needs a download of 14.5 GB")
        expect(page.locator("#generate")).to_have_text("Waiting for your choice…")
        expect(page.locator("#refuse")).to_have_text("Use the mini model instead")
        page.locator("#allow").click()
        expect(panel).to_contain_text("6.0 GB of 14.5 GB")
        expect(page.locator("#allow")).to_have_count(0)
        expect(page.locator("#generate")).to_have_text("Downloading the model…")
        expect(page.locator("#refuse")).to_have_text("Cancel")
        page.locator("#refuse").click()
        expect(page.locator("#generate")).to_have_text("Generate")
        expect(panel).to_be_hidden()
        page.close()


def test_a_model_that_cannot_be_loaded_is_one_sentence(browser: Browser) -> None:
    def load() -> hyperlora.Pipeline:
        raise UserError("The base model is <damaged>.")

    model = Model(load)
    with serving(model) as url:
        model.start()
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#status .error")).to_have_text("The base model is <damaged>.")
        expect(page.locator("#generate")).to_be_disabled()
        page.close()
