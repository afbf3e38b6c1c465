"""A model's Markdown as HTML that is safe to show."""

from markdown_it import MarkdownIt

MAX_CHARACTERS = 50_000  # of an answer; a longer one is shown as it is
# HTML is text, and so is an address that is none of the web's; a picture is a link, so that nothing is loaded.
_MARKDOWN = MarkdownIt("js-default", {"breaks": True}).disable("image")


def to_html(text: str) -> str | None:
    """The text as HTML with no markup but Markdown's; None where it is too long for that."""
    if len(text) > MAX_CHARACTERS:
        return None
    return f'<div class="markdown">{_MARKDOWN.render(text).strip()}</div>'
