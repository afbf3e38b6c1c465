"""The README's pictures of the page, with the mini model: python -m tests.screenshots [FOLDER]

Takes Chromium as tests/browser does.
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

import hyperlora
from hyperlora.model import Model
from tests.browser.visit import CHROMIUM, generate, send
from tests.ui.visitor import serving

BRACKETS, PLURAL = "Put each word in square brackets.", "Write the plural of the word."


def chat(page: Page) -> None:
    generate(page, BRACKETS)
    generate(page, PLURAL)
    send(page, "window")
    expect(page.locator("#chat")).to_contain_text("windows")
    page.locator("#shelf label", has_text=BRACKETS).click()
    send(page, "one two three")
    expect(page.locator("#chat")).to_contain_text("[one] [two] [three]")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def compare(page: Page) -> None:
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Message to both").fill("one two three")
    page.get_by_role("button", name="Ask both").click()
    expect(page.locator("#left_wins")).to_be_enabled()


def run_file(page: Page) -> None:
    page.get_by_role("button", name="File", exact=True).click()
    rows = [
        "garden wall => [garden] [wall]",
        "blue sky => [blue] [sky]",
        "river => [river]",
        "old tree => (old) (tree)",
    ]
    page.locator("#file textarea").first.fill("\n".join(rows))
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#file_said")).to_contain_text("Done")


def find(page: Page) -> None:
    page.get_by_role("button", name="From examples").click()
    pairs = ("cat => cats", "box => boxes", "window => windows", "city => cities", "dog => dogs", "bush => bushes")
    page.get_by_label("Examples, a line each").fill("\n".join(pairs))
    page.get_by_role("button", name="Find descriptions").click()
    expect(page.locator("#found_said")).to_contain_text("Done")


def understand(page: Page) -> None:
    page.get_by_role("button", name="Understand").click()
    expect(page.locator("#tokens .spans")).to_be_visible()


def export(page: Page) -> None:
    page.get_by_role("button", name="Export").click()
    expect(page.locator("#commands figure").first).to_be_visible()


def blend(page: Page) -> None:
    page.get_by_role("button", name="Blend").click()
    expect(page.get_by_role("button", name="Make the blend")).to_be_enabled()


def more(page: Page) -> None:
    page.get_by_role("button", name="Blend", exact=True).click()  # back to the conversation
    page.locator("#more_button").click()
    expect(page.locator("#settings")).to_be_visible()


PICTURES = {
    "compare": compare,
    "file": run_file,
    "examples": find,
    "understand": understand,
    "export": export,
    "blend": blend,
    "more": more,
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = Model(lambda: hyperlora.pipeline("mini"))
    model.start()
    with serving(model) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        expect(page.locator("#generate")).to_be_enabled()
        chat(page)
        page.screenshot(path=folder / "screenshot.png")
        for name, show in PICTURES.items():
            show(page)
            page.screenshot(path=folder / f"{name}.png")
        page.keyboard.press("Escape")
        page.locator("#theme").click()
        page.set_viewport_size({"width": 375, "height": 812})
        page.locator("#talk").scroll_into_view_if_needed()
        page.screenshot(path=folder / "phone.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "assets/pictures"))
