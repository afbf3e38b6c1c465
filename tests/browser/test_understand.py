"""What the page shows of an adapter, in a real browser."""

from playwright.sync_api import Page, expect

from tests.browser.visit import generate, send
from tests.ui.visitor import ADD, REVERSE


def test_an_adapter_is_looked_at_and_follows_the_selection(page: Page) -> None:
    page.get_by_role("button", name="Understand").click()
    expect(page.locator("#shown")).to_contain_text("Select an adapter first")
    generate(page, ADD)
    expect(page.locator("#shown h2")).to_have_text(ADD)
    expect(page.locator("#tokens")).to_contain_text("Ask something first")
    page.get_by_role("button", name="Understand").click()
    send(page, "one two")
    expect(page.locator("#retry")).to_be_enabled()
    page.get_by_role("button", name="Understand").click()
    answer = page.locator("#chat .bot.message .md").first.text_content()
    expect(page.locator("#tokens .spans")).to_have_text(answer)
    generate(page, REVERSE)
    expect(page.locator("#shown h2")).to_have_text(REVERSE)
    assert page.locator("#shown .own").count() == 2
    page.set_viewport_size({"width": 375, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 375
