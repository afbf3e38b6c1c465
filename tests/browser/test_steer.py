"""Blends, and adapters that go out and come in again, in a real browser."""

from pathlib import Path

from playwright.sync_api import Browser, Page, expect

import hyperlora
from hyperlora.lora import Adapter
from hyperlora.model import Model
from tests.browser.visit import expect_answers, generate, said, send, visit
from tests.ui.visitor import ADD, REVERSE, serving


def test_two_adapters_are_blended_and_shared(page: Page, pipe: hyperlora.Pipeline) -> None:
    generate(page, ADD)
    generate(page, REVERSE)
    page.get_by_role("button", name="Blend").click()
    page.get_by_label(f"Weight of {ADD}").fill("-1")
    page.get_by_role("button", name="Make the blend").click()
    name = f"0.5 * “{REVERSE}” + -1 * “{ADD}”"
    expect(page.locator("#shelf label.selected")).to_have_text(name)
    adapter = Adapter.blend([pipe.adapt(REVERSE), pipe.adapt(ADD)], [0.5, -1])
    send(page, "one two")
    answer = page.locator("#chat .bot.message .md")
    expect(page.locator("#retry")).to_be_enabled()
    assert answer.first.text_content() == pipe.chat("one two", adapter)
    page.get_by_role("button", name=f"More for {name}").click()
    expect(page.get_by_role("menuitem", name="Edit description")).to_be_disabled()
    page.get_by_role("menuitem", name="Copy link").click()
    link = page.get_by_label("Link").input_value()
    page.reload()
    expect(page.locator("#shelf label.selected")).to_have_text(name)
    address, _, fragment = link.partition("#")
    with visit(page.context.browser, address, f"#{fragment}") as other:
        expect(other.locator("#note")).to_contain_text(f"The link is to an adapter: {name}.")
        other.get_by_role("button", name="Make it").click()
        expect(other.locator("#shelf label.selected")).to_have_text(name)


def test_a_blend_without_two_weights_says_so(page: Page) -> None:
    generate(page, ADD)
    page.get_by_role("button", name="Blend").click()
    expect(page.locator("#blend_note")).to_contain_text("Two adapters are needed")
    generate(page, REVERSE)
    page.get_by_label(f"Weight of {ADD}").fill("")
    page.get_by_role("button", name="Make the blend").click()
    expect(page.locator("#blend_note")).to_contain_text("Give at least two adapters a weight.")
    page.get_by_label(f"Weight of {ADD}").fill("9")
    page.get_by_label(f"Weight of {REVERSE}").fill("1")
    page.get_by_role("button", name="Make the blend").click()
    expect(page.locator("#blend_note")).to_contain_text("weight should be a number from -4 to 4")


def test_an_adapter_goes_out_and_comes_in_again(
    page: Page,
    pipe: hyperlora.Pipeline,
    browser: Browser,
    tmp_path: Path,
) -> None:
    generate(page, REVERSE)
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download zip").click()
    download.value.save_as(tmp_path / "mine.zip")
    with serving(model := Model(lambda: pipe)) as url, visit(browser, url) as other:
        model.start()
        expect(other.locator("#generate")).to_be_enabled()
        with other.expect_file_chooser() as chooser:
            other.get_by_role("button", name="Import").click()
        chooser.value.set_files(tmp_path / "mine.zip")
        expect(other.locator("#shelf label.selected")).to_have_text("mine")
        send(other, "one two")
        expect_answers(other, said(pipe, "one two", REVERSE, "mine"))
        other.reload()
        expect(other.locator("#shelf label.selected")).to_have_text("mine")
        model._uploads.clear()  # as a server that was started again
        other.reload()
        expect(other.locator("#shelf label.selected")).to_have_text("mine · upload it again")
        send(other, "one two")
        expect(other.get_by_text("This adapter was uploaded, and its file is not here any more")).to_be_visible()
        (tmp_path / "bad.zip").write_bytes(b"no zip")
        other.locator("[data-testid=bring-upload-button]").set_input_files(tmp_path / "bad.zip")
        expect(other.locator("#note")).to_contain_text("The file is no zip")
        other.locator("[data-testid=bring-upload-button]").set_input_files(tmp_path / "mine.zip")
        expect(other.locator("#shelf label.selected")).to_have_text("mine")
