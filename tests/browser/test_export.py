"""What leaves the page, in a real browser: files that are downloaded and opened, models that take a while, the Hub."""

import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from peft import PeftConfig
from playwright.sync_api import Browser, Page, expect
from safetensors import safe_open

import hyperlora
from hyperlora import export as library
from hyperlora.lora import Adapter
from hyperlora.model import Model
from hyperlora.ui.page import build_page
from tests.browser.visit import HOSTILE, generate, visit
from tests.hub_server import HOSTS, TOKEN, Hub
from tests.ui.visitor import ADD, REVERSE, serving, wait_until

SLUG = "reverse-the-order-of-the-words"


def open_export(page: Page, form: str = "PEFT") -> None:
    page.get_by_role("button", name="Export").click()
    choose(page, form)


def choose(page: Page, form: str) -> None:
    page.locator("#forms label", has_text=form).click()


def download(page: Page, folder: Path, button: str) -> Path:
    """The folder in which the zip is unpacked that the page downloads, named as the zip."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    download.value.save_as(path := folder / download.value.suggested_filename)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(unpacked := path.with_suffix(""))
    return unpacked


def test_the_zip_is_two_clicks_away(page: Page, pipe: hyperlora.Pipeline, tmp_path: Path) -> None:
    for description in (REVERSE, ADD):
        generate(page, description)
        if description == REVERSE:
            page.get_by_role("button", name="Export").click()
        folder = download(page, tmp_path, "Download zip")
        assert PeftConfig.from_pretrained(folder).r == 8
        assert description in (folder / "README.md").read_text()
    page.locator("#strength input[type=number]").fill("-0.5")
    page.keyboard.press("Enter")
    expect(page.locator("#export_what")).to_have_text(f"“{ADD}” · strength -0.5")
    adapter, ours = Adapter.from_pretrained(download(page, tmp_path, "Download zip")), pipe.adapt(ADD).scaled(-0.5)
    torch.testing.assert_close(adapter.delta_w("q_proj", 0), ours.delta_w("q_proj", 0))


def test_each_format_is_opened_by_what_it_is_for(page: Page, tmp_path: Path) -> None:
    generate(page, REVERSE)
    open_export(page, "Ollama")
    expect(page.locator("#commands figcaption")).to_have_text(["llama.cpp", "Ollama", "curl"])
    (adapter,) = download(page, tmp_path, "Download GGUF").glob("*.gguf")
    assert any("attn_q" in tensor.name for tensor in GGUFReader(adapter).tensors)
    choose(page, "Merged model")
    with safe_open(download(page, tmp_path, "Make and download") / "model.safetensors", "pt") as file:
        assert "model.layers.0.self_attn.q_proj.weight" in file.keys()  # noqa: SIM118 (not a dict)
    page.locator("#merged_as select").select_option("merged-gguf")
    (model,) = download(page, tmp_path, "Make and download").glob("*.gguf")
    assert any(tensor.name == "token_embd.weight" for tensor in GGUFReader(model).tensors)
    expect(page.locator("#export_said")).to_have_text(f"{SLUG}-merged-gguf.zip is ready.")


def test_without_an_adapter_there_is_nothing_to_export(page: Page) -> None:
    page.get_by_role("button", name="Export").click()
    expect(page.locator("#export_about")).to_contain_text("Select an adapter first")
    expect(page.get_by_role("button", name="Download zip")).to_be_disabled()
    generate(page, REVERSE)
    expect(page.get_by_role("button", name="Download zip")).to_be_enabled()
    expect(page.locator("#commands figure").first).to_be_visible()
    page.locator("#shelf label", has_text="No adapter").click()
    expect(page.get_by_role("button", name="Download zip")).to_be_disabled()
    expect(page.locator("#commands figure")).to_have_count(0)


def test_the_commands_are_of_what_is_selected_and_can_be_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    generate(page, ADD)
    open_export(page, "Ollama")
    expect(page.locator("#commands")).to_contain_text("add-the-two-numbers-gguf/Modelfile")
    generate(page, REVERSE)
    expect(page.locator("#commands")).to_contain_text(f"{SLUG}-gguf/Modelfile")
    page.get_by_title("Copy for Ollama").click()
    expect(page.get_by_title("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#commands pre").nth(1).text_content()


def test_the_keyboard_is_enough(page: Page) -> None:
    generate(page, REVERSE)
    page.get_by_role("button", name="Export").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#forms input").first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("button", name="Download GGUF")).to_be_enabled()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Download zip")).to_be_focused()
    with page.expect_download():
        page.keyboard.press("Enter")


@pytest.mark.parametrize(
    "description", [HOSTILE, "x" * 1500, "Write the next word. " * 70, "日本語に翻訳してください。"]
)
def test_any_description_is_shown_as_text_and_fits(page: Page, tmp_path: Path, description: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    generate(page, description.strip())
    open_export(page)
    expect(page.locator("#export_what")).to_contain_text(description.strip()[:20])
    for form in ("PEFT", "Ollama", "Merged model", "Hugging Face Hub"):
        choose(page, form)
        expect(page.locator("#hub" if "Hub" in form else "#commands figure:nth-child(2)")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#export :is(img, b)").count() == 0
    choose(page, "PEFT")
    assert description.strip()[:20] in (download(page, tmp_path, "Download zip") / "README.md").read_text()


def test_an_upload_is_exported_too(page: Page, browser: Browser, tmp_path: Path) -> None:
    generate(page, REVERSE)
    open_export(page)
    folder = download(page, tmp_path, "Download zip")
    page.locator("[data-testid=bring-upload-button]").set_input_files(folder.with_suffix(".zip"))
    expect(page.locator("#shelf label.selected")).to_have_text(SLUG)
    again = download(page, tmp_path / "again", "Download zip")
    ours, theirs = Adapter.from_pretrained(again), Adapter.from_pretrained(folder)
    torch.testing.assert_close(ours.delta_w("v_proj", 1), theirs.delta_w("v_proj", 1))


class Writer:
    """Stands for what writes a model: it is as far as it is told to be, and whole at 100."""

    def __init__(self):
        self.done, self.cancelled = 0, threading.Event()

    def __call__(self, pipe: object, adapter: object, form: str, path: Path, report: Callable) -> Path:
        try:
            wait_until(lambda: report(self.done, 100) or self.done == 100)
        except BaseException:
            self.cancelled.set()
            raise
        path.write_text("whole")
        return path


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    writer = Writer()
    monkeypatch.setattr(library, "export", writer)
    yield writer
    writer.done = 100


def test_a_model_is_made_in_the_background_and_can_be_cancelled(
    page: Page, browser: Browser, url: str, writer: Writer
) -> None:
    generate(page, REVERSE)
    open_export(page, "Merged model")
    page.get_by_role("button", name="Make and download").click()
    expect(page.locator("#export_said")).to_have_text("0 % is written.")
    writer.done = 30
    expect(page.locator("#export_done")).to_have_js_property("value", 30)
    expect(page.get_by_role("button", name="Make and download")).to_be_disabled()
    with visit(browser, url) as other:  # has to wait, and says so
        generate(other, ADD)
        open_export(other, "Merged model")
        other.get_by_role("button", name="Make and download").click()
        expect(other.locator("#export_said .error")).to_contain_text("Another visitor's model is being made")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Export").click()
    expect(page.locator("#export_said")).to_have_text("30 % is written.")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#export_said .error")).to_have_text("Cancelled.")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    assert writer.cancelled.is_set()
    writer.done = 100
    with page.expect_download() as download:
        page.get_by_role("button", name="Make and download").click()
    assert download.value.suggested_filename == f"{SLUG}-merged.zip"


def test_what_is_made_for_a_visitor_who_leaves_is_given_up(browser: Browser, url: str, writer: Writer) -> None:
    with visit(browser, url) as page:
        generate(page, REVERSE)
        open_export(page, "Merged model")
        page.get_by_role("button", name="Make and download").click()
        expect(page.locator("#export_said")).to_have_text("0 % is written.")
    assert writer.cancelled.wait(300)


def test_a_file_goes_as_its_visitor_leaves(
    browser: Browser, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder := tmp_path / "gradio"))
    with visit(browser, url) as page:
        generate(page, REVERSE)
        open_export(page)
        download(page, tmp_path, "Download zip")
        assert list(folder.glob("export-*/*.zip"))
    wait_until(lambda: not list(folder.glob("export-*/*.zip")))


def test_a_host_that_writes_no_models_offers_none(browser: Browser, pipe: hyperlora.Pipeline) -> None:
    model = Model(lambda: pipe)
    model.start()
    with serving(model, build_page(model, merges=False)) as url, visit(browser, url) as page:
        page.get_by_role("button", name="Export").click()
        expect(page.locator("#forms label")).to_have_text(["PEFT", "Ollama, llama.cpp", "Hugging Face Hub"])


def test_an_adapter_is_pushed_and_the_token_stays_nowhere(page: Page, hub_server: Hub) -> None:
    generate(page, REVERSE)
    open_export(page, "Hugging Face Hub")
    go, said = page.get_by_role("button", name="Push to the Hub"), page.locator("#export_said")
    go.click()
    expect(said.locator(".error")).to_contain_text("A token of the Hugging Face Hub is needed")
    page.get_by_label("Token", exact=True).fill(TOKEN)
    expect(go).to_be_enabled()
    page.keyboard.press("Enter")
    expect(said.get_by_role("link")).to_have_text(f"{hub_server.url}/ada/{SLUG}")
    assert said.get_by_role("link").get_attribute("href") == f"{hub_server.url}/ada/{SLUG}"
    assert hub_server.repos[f"ada/{SLUG}"]["private"] and len(hub_server.repos[f"ada/{SLUG}"]["files"]) == 5
    expect(page.get_by_label("Token", exact=True)).to_have_value("")
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.get_by_label("Repository").fill("ada/other")
    page.get_by_label("Public").check()
    go.click()
    expect(said.get_by_role("link")).to_have_text(f"{hub_server.url}/ada/other")
    assert hub_server.repos["ada/other"]["private"] is False
    page.get_by_label("Token", exact=True).fill(TOKEN)
    go.click()
    expect(said.locator(".error")).to_contain_text("ada/other is on the Hub already")
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.documentElement.outerHTML])")
    assert "ada/other" in kept or REVERSE in kept
    assert TOKEN not in kept and HOSTS not in str(hub_server.requests)
    page.reload()
    open_export(page, "Hugging Face Hub")
    expect(page.get_by_label("Token", exact=True)).to_have_value("")


def test_a_server_that_goes_is_said(browser: Browser, pipe: hyperlora.Pipeline, writer: Writer) -> None:
    model = Model(lambda: pipe)
    model.start()
    serves = serving(model)
    with visit(browser, serves.__enter__()) as page:
        generate(page, REVERSE)
        open_export(page, "Merged model")
        page.get_by_role("button", name="Make and download").click()
        expect(page.locator("#export_said")).to_have_text("0 % is written.")
        serves.__exit__(None, None, None)
        expect(page.locator("#export_said .error")).to_contain_text("The server did not answer")
        expect(page.get_by_role("button", name="Make and download")).to_be_enabled()
