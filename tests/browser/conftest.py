"""A tiny pipeline, its page, and Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import hyperlora
from hyperlora.model import Model
from tests.browser.visit import CHROMIUM, visit
from tests.ui.visitor import serving


@pytest.fixture(scope="module")
def pipe(terse_base: Path, tiny_hyperlora: Path) -> Iterator[hyperlora.Pipeline]:
    pipe = hyperlora.pipeline(None, base=terse_base, hyperlora=tiny_hyperlora)
    pipe.multi_turn = pipe.markdown = False  # as the bundled model
    yield pipe
    pipe.close()


@pytest.fixture(scope="module")
def url(pipe: hyperlora.Pipeline) -> Iterator[str]:
    model = Model(lambda: pipe)
    model.start()
    with serving(model) as url:
        yield url


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium found: install it, or name it in CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with visit(browser, url) as page:
        expect(page.locator("#generate")).to_be_enabled()
        yield page
