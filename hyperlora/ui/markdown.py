"""A model's Markdown as HTML that is safe to show."""

from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from hyperlora.ui.formula import formulas

MAX_CHARACTERS = 50_000  # of an answer; a longer one is shown as it is
COPY = '<button type="button" class="act copy code" title="Copy the code"></button>'


class _Renderer(RendererHTML):
    """Code has a button that copies it, and links open apart."""

    def fence(self, *block: Any) -> str:
        return f'<div class="code">{COPY}{super().fence(*block)}</div>'

    def code_block(self, *block: Any) -> str:
        return f'<div class="code">{COPY}{super().code_block(*block)}</div>'

    def link_open(self, tokens: list[Token], i: int, *more: Any) -> str:
        tokens[i].attrs |= {"target": "_blank", "rel": "noopener noreferrer"}
        return self.renderToken(tokens, i, *more)


# HTML is text, and so is an address that is none of the web's; a picture is a link, so that nothing is loaded.
_MARKDOWN = MarkdownIt("js-default", {"breaks": True}, renderer_cls=_Renderer).disable("image").use(formulas)


@lru_cache(512)  # a conversation is drawn again and again while its last answer is written
def to_html(text: str) -> str | None:
    """The text as HTML with no markup but Markdown's; None where it is too long for that."""
    if len(text) > MAX_CHARACTERS:
        return None
    return f'<div class="markdown">{_MARKDOWN.render(text).strip()}</div>'
