"""What axe finds in the page: nothing, whatever is open, in light and in dark."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.visit import generate, send, visit
from tests.ui.visitor import ADD, REVERSE

DRAWN = {"understand": "#tokens .spans", "export": "#commands figure:nth-child(2)"}  # what comes later than its mode


def findings(page: Page) -> list[str]:
    violations = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html'][:200]}" for each in violations for node in each["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, url: str, scheme: str) -> None:
    with visit(browser, url, color_scheme=scheme) as page:
        expect(page.locator("#generate")).to_be_enabled()
        assert findings(page) == []
        for description in (ADD, REVERSE):
            generate(page, description)
        send(page, "one two")
        expect(page.locator("#retry")).to_be_enabled()
        page.locator("#retry").click()
        expect(page.locator("#chat .place")).to_have_text("2/2")
        assert findings(page) == []
        page.locator("#more_button").click()
        page.locator("#set_seed").fill("x")
        page.locator("#set_stop").focus()
        expect(page.locator("#seed_said")).not_to_be_empty()
        assert findings(page) == []
        page.locator("#set_seed").fill("")
        page.keyboard.press("Escape")
        for mode in page.locator("button[data-mode]").all():
            mode.click()
            name = mode.get_attribute("data-mode")
            expect(page.locator(DRAWN.get(name, f"#{name}"))).to_be_visible()
            assert findings(page) == [], name
        page.get_by_role("button", name="Export").click()
        for form in page.locator("#forms label").all():
            form.click()
            expect(page.locator("#hub" if "Hub" in form.inner_text() else DRAWN["export"])).to_be_visible()
            assert findings(page) == [], form.inner_text()
        page.get_by_role("button", name="Export").click()
        page.get_by_role("button", name=f"More for {REVERSE}").click()
        assert findings(page) == []
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Card").click()
        expect(page.locator("#reader")).to_be_visible()
        assert findings(page) == []
