"""A file through an adapter, in a real browser."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

import hyperlora
from tests.browser.visit import generate, visit_for_a_while
from tests.ui.visitor import REVERSE, slow, wait_until

HTML = "<img src=x onerror=alert(1)>"


def given(page: Page, data: bytes, name: str = "x.csv") -> None:
    if page.locator("#file").is_hidden():
        page.get_by_role("button", name="File", exact=True).click()
    page.locator("#file input[type=file]").set_input_files({"name": name, "mimeType": "text/plain", "buffer": data})


def run(page: Page) -> None:
    page.get_by_role("button", name="Run").click()


def cells(page: Page) -> list[list[str]]:
    return page.evaluate(
        "[...document.querySelectorAll('#rows tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
    )


def download(page: Page, tmp_path: Path) -> list[list[str]]:
    with page.expect_download() as found:
        page.get_by_role("button", name="Download").click()
    assert found.value.suggested_filename == "my words.answers.csv"
    found.value.save_as(tmp_path / "answers.csv")
    with open(tmp_path / "answers.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_file_through_the_selected_adapter(page: Page, pipe: hyperlora.Pipeline, tmp_path: Path) -> None:
    generate(page, REVERSE)
    answers = {message: pipe.chat(message, pipe.adapt(REVERSE)) for message in ("a b", HTML, "=c")}
    rows = [["a b", answers["a b"], "1"], [HTML, HTML, "2"], ["", "x", "3"], ["=c", "", "4"]]
    text = "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in [[HTML, "label", "n"], *rows])
    given(page, text.encode(), "my words.csv")
    expect(page.locator("#file_state")).to_have_text("4 rows.")
    assert page.locator("#messages_by option").all_inner_texts() == [HTML, "label", "n"]
    expect(page.get_by_role("combobox", name="Messages")).to_have_value(HTML)
    expect(page.get_by_role("combobox", name="Expected")).to_have_value("label")
    assert cells(page)[1] == ["2", HTML, "", HTML, ""]
    run(page)
    said = page.locator("#file_said")
    expect(said).to_have_text("Done. 4 of 4 answered. 1 failed. 1 of 2 right.")
    expect(page.locator("#rows thead")).to_contain_text(f"Answer: “{REVERSE}”")
    empty = "The message is empty: write something for the model to answer."
    assert cells(page) == [
        ["1", "a b", answers["a b"], answers["a b"], "✓ right"],
        ["2", HTML, answers[HTML], HTML, "✗ wrong"],
        ["3", "", empty, "x", "! failed"],
        ["4", "=c", answers["=c"], "", ""],
    ]
    page.get_by_label("Only those").check()
    assert [row[0] for row in cells(page)] == ["2", "3"]
    names, *written = download(page, tmp_path)
    assert names == [HTML, "label", "n", "answer", "right", "error"]
    assert [row[2:4] for row in written[:2]] == [["1", answers["a b"]], ["2", answers[HTML]]]
    assert written[2][4:] == ["", empty] and written[3][0] == "'=c"
    page.get_by_role("combobox", name="Expected").select_option("n")
    run(page)  # again, with other answers to compare with
    expect(said).to_have_text("Done. 4 of 4 answered. 1 failed. 0 of 3 right.")
    assert page.locator("#file img").count() == 0


def test_pasted_lines_by_keyboard_and_stop(page: Page, pipe: hyperlora.Pipeline) -> None:
    page.get_by_role("button", name="File", exact=True).press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.insert_text("one => a\ntwo => b\n" * 200)
    expect(page.locator("#file_state")).to_have_text("400 rows. The first 5 are shown.")
    assert page.get_by_role("combobox", name="Expected").input_value() == "output"
    with slow(pipe, 0.05):
        page.get_by_role("button", name="Run").press("Enter")
        expect(page.locator("#rows tbody tr").first).to_be_visible()
        expect(page.locator("#file_state")).to_contain_text("of 400 answered.")
        page.get_by_role("button", name="Stop").press("Enter")
        expect(page.locator("#file_said")).to_contain_text(re.compile(r"Stopped\. \d+ of 400 answered\."))
    expect(page.locator("#run_file")).to_be_enabled()


def test_ten_thousand_rows_are_all_there_and_few_are_drawn(
    page: Page,
    pipe: hyperlora.Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(messages: list[str], *_, **__) -> Iterator[tuple[int, str]]:
        yield from ((i, f"{message}!") for i, message in enumerate(messages))

    monkeypatch.setattr(pipe, "chat_all", answer)
    given(page, ("message\n" + "".join(f"{i}\n" for i in range(10_000))).encode(), "my words.csv")
    run(page)
    expect(page.locator("#file_said")).to_have_text("Done. 10,000 of 10,000 answered.")
    expect(page.locator("#file_state")).to_have_text("The first 100 are shown; the download has all.")
    assert [row[0] for row in cells(page)] == [str(i) for i in range(1, 101)]
    assert download(page, tmp_path)[1:] == [[str(i), f"{i}!", "", ""] for i in range(10_000)]


def test_a_file_that_is_not_taken_says_why(page: Page) -> None:
    for data, name, sentence in (
        (b"input\n" + b"a\n" * 1_000_000, "x.csv", "more than 10,000 rows"),
        (b"x" * (6 << 20), "x.csv", "larger than 5 MB"),
        (bytes(range(256)) * 9, "x.csv", "no text in UTF-8"),
        (b"", "x.csv", "has no rows"),
        (f"{HTML},{HTML}\n".encode(), "x.csv", f"'{HTML}' twice"),
    ):
        given(page, b"a\nb", "good.txt")
        expect(page.locator("#run_file")).to_be_enabled()
        given(page, data, name)
        expect(page.locator("#file_said .error")).to_contain_text(sentence)
        expect(page.locator("#run_file")).to_be_disabled()


def test_a_paste_of_50_mb_gets_a_sentence(page: Page) -> None:
    page.get_by_role("button", name="File", exact=True).click()
    taken = page.evaluate("""() => {
        const clipboardData = new DataTransfer();
        clipboardData.setData("text/plain", "x".repeat(50_000_000));
        return document.querySelector("#file textarea").dispatchEvent(
            new ClipboardEvent("paste", {clipboardData, cancelable: true}));
    }""")
    assert not taken
    expect(page.locator("#file_said .error")).to_contain_text("larger than 5 MB")


def test_a_lost_connection_leaves_what_has_come(browser: Browser, pipe: hyperlora.Pipeline) -> None:
    with visit_for_a_while(browser, pipe, 0.02) as (page, end_server):
        given(page, b"a\n" * 900, "x.txt")
        run(page)
        expect(page.locator("#rows tbody tr").nth(3)).to_be_visible()
        end_server()
        expect(page.locator("#file_said .error")).to_contain_text(re.compile(r"Interrupted.* \d+ of 900 answered"))
        expect(page.get_by_role("button", name="Download")).to_be_enabled()
        wait_until(lambda: not pipe.engine._batch.rows)


def test_from_examples_to_an_adapter(page: Page, pipe: hyperlora.Pipeline) -> None:
    page.get_by_role("button", name="From examples").press("Enter")
    box, said = page.get_by_label("Examples, a line each"), page.locator("#found_said")
    find = page.get_by_role("button", name="Find descriptions")
    box.fill(f"{HTML} => b")
    find.click()
    expect(said).to_have_text("Give 2 to 20 examples: there are 1.")
    box.fill("\n".join(f"{HTML}{i} => {i}" for i in range(6)))
    find.click()
    expect(said).to_have_text("Done: take one that says what you mean.")
    found = page.locator("#found > li")
    assert 3 <= found.count() <= 5 and set(found.locator(".take").all_inner_texts()) <= {*pipe.hyperlora.descriptions}
    summary = found.first.locator("summary")
    expect(summary).to_have_text(re.compile(r"\d of 3 held-out examples right"))
    summary.press("Enter")
    expect(found.first.locator("ul li").first).to_have_text(re.compile(rf"(✓ right|✗ wrong): {re.escape(HTML)}\d → "))
    assert page.locator("#found img").count() == 0
    description = found.first.locator(".take").inner_text()
    found.first.locator(".take").press("Enter")
    expect(page.locator("#shelf label.selected")).to_have_text(description)
    expect(page.locator("#description textarea")).to_have_value(description)
    expect(page.locator("#chat")).to_be_visible()
    page.get_by_role("button", name="From examples").click()
    expect(found.first).to_contain_text(description)  # another one can be taken


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (375, 812)])
def test_both_modes_fit(page: Page, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    generate(page, REVERSE)
    given(page, b"".join(b"%d %s => %s\n" % (i, b"x" * 90, b"y" * 90) for i in range(60)), "a rather long name.txt")
    for mode, last in (("file", "#run_file"), ("pairs", "#find")):
        page.evaluate(f"hyperlora.turn('{mode}')")
        expect(page.locator(f"#{mode} .go")).to_be_visible()
        size = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert size[0] <= width and (width < 900 or size[1] <= height)
        page.locator(last).scroll_into_view_if_needed()
        expect(page.locator(last)).to_be_in_viewport(ratio=1)
