"""LaTeX in answers: MathML with nothing else in it, and text where it is none."""

import re
from html.parser import HTMLParser

import pytest

from hyperlora.ui.formula import MAX_FORMULA, to_mathml
from hyperlora.ui.markdown import to_html

SQUARE = '<math display="inline"><mrow><msup><mi>x</mi><mn>2</mn></msup></mrow></math>'


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("$x^2$", SQUARE),
        (r"a \(x^2\), b", f"a {SQUARE}, b"),
        ("$$x^2$$", SQUARE.replace("inline", "block")),
        ("\\[\nx^2\n\\]", SQUARE.replace("inline", "block")),
        ("`$x^2$`", "<code>$x^2$</code>"),
        (r"\$x$", "$x$"),
        ("It costs $5, then $6, or US$5-$6.", "It costs $5, then $6, or US$5-$6."),
        ("$ x $ $$ $$ $$$", "$ x $ $$ $$ $$$"),
        (r"\(x", "(x"),
        (rf"\({'x' * MAX_FORMULA}\)", f"({'x' * MAX_FORMULA})"),
        (r"$\newcommand{\a}{\b\b}\a$", r"$\newcommand{\a}{\b\b}\a$"),
    ],
    ids=lambda text: text[:20],
)
def test_formulas_are_read_and_prices_are_not(text: str, html: str) -> None:
    assert to_html(text) == f'<div class="markdown"><p>{html}</p></div>'


@pytest.mark.parametrize(
    "latex",
    [
        r"\text{<img src=x onerror=alert(1)>}",
        r"\text{&lt;img src=x onerror=alert(1)&gt;}",
        r"\text{&#60;script&#62;}",
        r"\href{javascript:alert(1)}{x}",
        r"\style{background:url(http://127.0.0.2)}{x}",
        r"\class{act}{x} \color{red}{x} \rule{999em}{999em} \hspace{9999em} x",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\sum_{i=0}^{n} \frac{a_i}{\sqrt[3]{b}} \le \left( \mathbb{R} \right)",
        r"\frac{1",
        "{" * 400,
    ],
)
def test_a_formula_is_signs_alone(latex: str) -> None:
    html = to_html(f"${latex}$")
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(html)
    assert {tag for tag, _ in found} <= {"div", "p", "math"} | {
        *("mrow", "mi", "mn", "mo", "mtext", "mspace", "mstyle", "mtable", "mtr", "mtd"),
        *("mfrac", "msub", "msup", "msubsup", "munderover", "mroot", "mpadded"),
    }
    for tag, attributes in found:
        assert tag == "div" or not attributes.keys() & {"href", "style", "class", "mathcolor", "mathbackground", "src"}
        assert all(re.fullmatch(r"[a-z ]+|[-+]?\d?(\.\d+)?(em|ex|px)?", value) for value in attributes.values())


def test_what_is_no_formula_is_none() -> None:
    assert to_mathml("{" * 5000 + "}" * 5000, "inline") is None


@pytest.mark.parametrize(
    "latex", [r"\def\a#1{\a{#1#1}}\a{x}", r"\newenvironment{a}{b}{c}", r"\newcommand{\a}{x}\a", "#1"]
)
def test_nothing_that_could_grow_is_read(latex: str) -> None:
    assert to_mathml(latex, "inline") is None
