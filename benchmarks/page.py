"""What a visitor waits for, in a real browser (Chromium, through Playwright): the first adapted answer, a reload, and
two answers side by side against one.

The page runs in this process and is warm: the model is loaded, and everything has been done once before it is timed.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable

from playwright.sync_api import Browser, Page, sync_playwright

import hyperlora
from benchmarks.measure import TASKS, arguments, print_table
from hyperlora.model import Model
from hyperlora.ui.page import build_page, launch

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HAS_TEXT = "(one) => !['', '…'].includes(document.querySelector(one)?.textContent ?? '')"
BEGUN = f"({HAS_TEXT})('#chat .bot .md')"
BOTH = f"['#left :is(.verbatim, .markdown)', '#right :is(.verbatim, .markdown)'].every({HAS_TEXT})"
RESTORED = "document.querySelector('#shelf .selected') && document.querySelectorAll('#chat .bot').length"


def timed(page: Page, does: Callable[[], object], until: str) -> float:
    """Seconds from an act to the moment when the condition holds in the page."""
    start = time.perf_counter()
    does()
    page.wait_for_function(until, polling="raf", timeout=300_000)
    return time.perf_counter() - start


def stop(page: Page) -> None:
    """End what is being answered; a short answer may be over."""
    page.evaluate(
        "document.querySelectorAll('#message .stop-button, .running #halt').forEach((button) => button.click())"
    )
    page.wait_for_selector("#retry:enabled", state="attached")
    page.wait_for_selector(".running", state="detached")


def visit(browser: Browser, url: str, number: int) -> dict[str, float]:
    """One visitor's seconds for each of the figures."""
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.goto(url)
    page.wait_for_selector("#generate:enabled")
    description, message = list(TASKS.items())[number % len(TASKS)]

    def ask() -> None:
        if page.locator("#examples .gallery-item").count():  # two clicks: an example, and Send
            page.locator("#examples .gallery-item").nth(number % 5).click()
        else:
            page.locator("#description textarea").fill(description)
            page.locator("#message textarea").fill(message)
            page.locator("#generate").click()
        page.get_by_role("button", name="Send").click()

    found = {"to the first adapted answer, from an open page": timed(page, ask, BEGUN)}
    stop(page)
    found["from a reload to the shelf and the conversation"] = timed(page, page.reload, RESTORED)
    page.wait_for_selector("#generate:enabled")
    page.get_by_role("button", name="New").click()
    page.locator("#message textarea").fill(message)
    found["one answer begins"] = timed(page, page.get_by_role("button", name="Send").click, BEGUN)
    stop(page)
    page.get_by_role("button", name="Compare").click()
    page.locator("#question textarea").fill(message)
    found["both of two begin"] = timed(page, page.get_by_role("button", name="Ask both").click, BOTH)
    stop(page)
    page.close()
    return found


def main() -> None:
    args = arguments(__doc__, repetitions=7)
    pipe = hyperlora.pipeline("mini", base=args.base, hyperlora=args.hyperlora)
    model = Model(lambda: pipe)
    model.start()
    demo = build_page(model)
    url = launch(demo)
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        runs = [visit(browser, url, number) for number in range(1 + args.repetitions)][1:]
        browser.close()
    demo.close()
    pipe.close()
    seconds = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    rows = [[name, f"{value:.2f} s"] for name, value in seconds.items()]
    ratio = seconds["both of two begin"] / seconds["one answer begins"]
    print_table(["a visitor waits", "median"], [*rows, ["both of two begin, against one answer", f"{ratio:.2f} x"]])


if __name__ == "__main__":
    main()
