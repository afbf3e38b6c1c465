"""The way into a page that asks for a password."""

import re

from playwright.sync_api import Browser, expect

import hyperlora
from hyperlora.model import Model
from hyperlora.ui.signin import MESSAGE, matches
from tests.browser.visit import generate, visit
from tests.ui.visitor import ADD, serving, wait_until


def test_a_visitor_signs_in_on_the_page(browser: Browser, pipe: hyperlora.Pipeline) -> None:
    model = Model(lambda: pipe)
    model.start()
    wait_until(lambda: model.settled)
    with serving(model, check=matches("ada", "correct horse")) as url, visit(browser, url) as page:
        expect(page.get_by_text(MESSAGE)).to_be_visible()
        page.get_by_label("username").fill("ada")
        page.get_by_label("password").fill("correct horse")
        page.get_by_role("button", name=re.compile("log ?in", re.IGNORECASE)).click()
        generate(page, ADD)
