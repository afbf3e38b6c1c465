"""The README and the card of the model that answers, as HTML for the page."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

from hyperlora.errors import UserError
from hyperlora.presets import TEXT_TO_LORA, assets_dir

if TYPE_CHECKING:
    from hyperlora.pipe import Pipeline

_MARKDOWN = MarkdownIt("js-default")
_MARKDOWN.add_render_rule("image", lambda *_: "")  # nothing is loaded
_MARKDOWN.add_render_rule("link_open", lambda self, tokens, i, *_: _link(tokens[i].attrGet("href")))


def _link(address: str) -> str:
    """An address on the web opens apart; one in the repository is no link here."""
    if not address.startswith(("http://", "https://")):
        return "<a>"
    return f'<a href="{address}" target="_blank" rel="noopener noreferrer">'


def _html(markdown: str) -> str:
    markdown = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)  # what a hub reads
    return f'<div class="markdown">{_MARKDOWN.render(markdown)}</div>'


def readme() -> str:
    """The checkout's README, or the installed package's; `UserError` where there is none."""
    file = assets_dir().parent / "README.md"
    try:
        return _html(file.read_text(encoding="utf-8") if file.is_file() else metadata("hyperlora").get_payload())
    except (OSError, PackageNotFoundError):
        raise UserError("The README is not beside this copy of HyperLoRA.") from None


def card(pipe: "Pipeline") -> str:
    """What is known of the hypernetwork that makes the adapters; a sentence where it has no card here."""
    preset = pipe.preset
    if preset is None or not preset.summary:
        return _html(f"No card comes with {pipe.hyperlora.name}.")
    if preset.hyperlora == TEXT_TO_LORA:
        return _html(f"{preset.description}\n\n[Its card](https://huggingface.co/{TEXT_TO_LORA}) is on the Hub.")
    file = assets_dir() / Path(preset.hyperlora).parent / "README.md"
    return _html(file.read_text(encoding="utf-8") if file.is_file() else preset.description)
