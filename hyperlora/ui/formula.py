"""Formulas in LaTeX as MathML, which browsers show without any script or font of somebody else's."""

import re
from functools import lru_cache
from html import unescape
from xml.etree.ElementTree import tostring

from latex2mathml.converter import Converter
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

MAX_FORMULA = 1_000  # characters; a longer one is text
SIGNS = (("$$", "$$", "block"), (r"\[", r"\]", "block"), (r"\(", r"\)", "inline"), ("$", "$", "inline"))
MACROS = ("#", r"\def", r"\new", "DeclareMathOperator")  # a few of which can grow without bound
# The converter also writes links, classes, styles and colours, and does not escape text: so what it makes is rebuilt.
TAGS = re.compile(
    "math|menclose|mfrac|mi|mmultiscripts|mn|mo|mover|mpadded|mphantom|mroot|mrow|mspace|msqrt|mstyle|msub|msubsup|msup"
    "|mtable|mtd|mtext|mtr|munder|munderover"
)
ATTRIBUTES = re.compile(
    "accent|columnalign|depth|display|displaystyle|fence|form|height|largeop|linethickness|lspace|mathvariant|maxsize"
    "|minsize|movablelimits|notation|rowspacing|rspace|scriptlevel|separator|stretchy|symmetric|voffset|width"
)
VALUE = re.compile(r"[a-z ]{1,40}|[-+]?\d?(\.\d{1,4})?(em|ex|px|%)?")


def formulas(markdown: MarkdownIt) -> None:
    r"""Let it read formulas: $a$, \(a\) in a line, $$a$$ and \[a\] on their own. What is none stays text."""
    markdown.inline.ruler.before("escape", "formula", _read)
    markdown.add_render_rule("formula", lambda self, tokens, i, *_: tokens[i].content)


def _read(state: StateInline, silent: bool) -> bool:
    for opens, closes, display in SIGNS:
        if not state.src.startswith(opens, state.pos):
            continue
        begin = state.pos + len(opens)
        end = state.src.find(closes, begin, begin + MAX_FORMULA)
        latex = state.src[begin:end]
        if end < 0 or not latex.strip() or "$" in latex:
            continue
        if opens == "$" and (latex != latex.strip() or state.src[end + 1 : end + 2].isdigit()):
            continue  # prices
        if (html := to_mathml(latex, display)) is None:
            return False
        if not silent:
            state.push("formula", "", 0).content = html
        state.pos = end + len(closes)
        return True
    return False


@lru_cache(1024)  # an answer is drawn again and again while it is written
def to_mathml(latex: str, display: str) -> str | None:
    """LaTeX as MathML of nothing but signs, "inline" or "block"; None for what cannot be read."""
    if any(macro in latex for macro in MACROS):
        return None
    try:
        math = Converter(display=display).convert_to_element(latex)
        for element in math.iter():
            if not TAGS.fullmatch(element.tag):
                return None
            for name, value in list(element.attrib.items()):
                if not (ATTRIBUTES.fullmatch(name) and VALUE.fullmatch(value)):
                    del element.attrib[name]
            element.text, element.tail = unescape(element.text or ""), unescape(element.tail or "")
        return tostring(math, encoding="unicode", short_empty_elements=False)
    except Exception:  # whatever it raises for what is no formula, and for one that is too deep
        return None
