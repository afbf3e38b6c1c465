"""What tests in a browser share: a visitor's page, and what is done on it."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from playwright.sync_api import Browser, Page, Route, TimeoutError, expect

import hyperlora
from hyperlora.model import Model
from tests.ui.visitor import serving, slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
TIMEOUT = 120_000  # milliseconds: a busy machine is no failure
expect.set_options(timeout=TIMEOUT)


@contextmanager
def visit(
    browser: Browser, url: str, fragment: str = "", cookies: Sequence[dict[str, str]] = (), **options
) -> Iterator[Page]:
    """The page as a visitor of their own has it, in as many tabs as they open.

    It fails where a page logs an error, or asks another host for anything, which is also kept from it.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
    context.set_default_timeout(TIMEOUT)
    context.add_cookies(cookies)
    complaints: list[str] = []

    def complain(text: str) -> None:
        # What is said when a page is left in the middle of an answer, or the line breaks.
        if not re.search("AbortError|errored out|net::ERR_|Failed to fetch|network error|Server stopped", text):
            complaints.append(text)

    def refuse(route: Route) -> None:
        complaints.append(route.request.url)
        route.abort()

    context.route(lambda asked: not asked.startswith((url, "data:")), refuse)
    context.on("console", lambda message: complain(message.text) if message.type == "error" else None)
    context.on("weberror", lambda error: complain(str(error.error)))
    page = context.new_page()
    page.goto(url + fragment)
    yield page
    context.close()
    assert complaints == []


@contextmanager
def visit_for_a_while(
    browser: Browser, pipe: hyperlora.Pipeline, seconds: float
) -> Iterator[tuple[Page, Callable[[], None]]]:
    """A page that is ready, whose answers take so long for each token, and what makes its server go."""
    model = Model(lambda: pipe)
    model.start()
    with ExitStack() as server:
        address = server.enter_context(serving(model))
        with visit(browser, address) as page, slow(pipe, seconds):
            expect(page.locator("#generate")).to_be_enabled()
            yield page, server.close


def generate(page: Page, description: str) -> None:
    page.locator("#description textarea").fill(description)
    page.locator("#generate").click()
    expect(page.locator("#shelf label.selected")).to_have_text(description)


def send(page: Page, message: str) -> None:
    page.locator("#message textarea").fill(message)
    page.get_by_role("button", name="Send").click()


def expect_answers(page: Page, *answers: tuple[str, str]) -> None:
    """The finished conversation's answers and who gave them, to the last space."""
    expected = [part for answer, by in answers for part in (answer if answer.strip() else "(no text)", by)]
    text = "(part) => (part.querySelector('.by') ?? part).textContent"
    shown = f"[...document.querySelectorAll('#chat .bot.message .md')].map({text})"
    with suppress(TimeoutError):
        page.wait_for_function(f"(expected) => JSON.stringify({shown}) === JSON.stringify(expected)", arg=expected)
    assert page.evaluate(shown) == expected
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def said(pipe: hyperlora.Pipeline, message: str, description: str = "", by: str = "", **options) -> tuple[str, str]:
    """What the page shows of an answer by the description's adapter: the text, and what is under it."""
    adapter = pipe.adapt(description) if description else None
    adapter = adapter.scaled(options.pop("strength")) if "strength" in options else adapter
    stream = pipe.chat(message, adapter=adapter, stream=True, **options)
    answer = "".join(stream)
    cut = " · cut off at the token limit" if stream.finish_reason == "length" else ""
    return answer, f"{by or description or 'No adapter'}{cut}"


def stored(page: Page, kind: str) -> list[dict]:
    """What the browser keeps of that kind, adapter or chat."""
    return page.evaluate(
        "(kind) => Object.keys(localStorage).filter((key) => key.startsWith(`hyperlora.${kind}.`))"
        ".map((key) => JSON.parse(localStorage[key]))",
        kind,
    )


def pick(page: Page, item: str, more: str = "#shelf .more") -> None:
    """An item of the selected adapter's menu, or of another one."""
    page.locator(more).click()
    page.get_by_role("menuitem", name=item).click()


HOSTILE = "<img src=x onerror=alert(1)><b>My</b> &amp; own"
