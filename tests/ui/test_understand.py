"""What the page shows of an adapter."""

import json
import re
from html import unescape

import pytest
import torch

import hyperlora
from hyperlora.likelihood import disagreements
from hyperlora.model import Model
from hyperlora.pca import map_descriptions
from hyperlora.ui.session import Turn
from hyperlora.ui.understand import Understand, norms_html
from tests.ui.visitor import ADD, REVERSE, shelved, text_of, written


def test_the_bars_are_the_norms_of_each_layer_and_module(make_adapter) -> None:
    adapter = make_adapter(0)
    html = norms_html(adapter)
    charts = re.findall(r"<figure>.*?</figure>", html)
    assert len(charts) == len(adapter.weights)
    most = max(float(adapter.delta_w(name, i).norm()) for name in adapter.weights for i in range(2))
    for name, chart in zip(adapter.weights, charts, strict=True):
        heights = [float(height) for height in re.findall(r'height="([\d.]+)"', chart)]
        expected = [40 * float(adapter.delta_w(name, i).norm()) / most for i in range(2)]
        torch.testing.assert_close(heights, expected, rtol=0, atol=0.01)
        assert f'aria-label="{name}: from ' in chart


def test_an_adapters_neighbours_and_place_are_shown(model: Model, pipe: hyperlora.Pipeline) -> None:
    chosen, other = shelved(REVERSE, "<b>Mine</b>"), shelved(ADD)
    html = Understand(model).show(chosen, json.dumps([chosen, other]))
    adapter = pipe.adapt(REVERSE)
    assert "<b>" not in html and "<h2>&lt;b&gt;Mine&lt;/b&gt;</h2>" in html
    assert f"‖ΔW‖ is {adapter.norm():.3g} over all layers" in text_of(html)
    [near] = pipe.hyperlora.nearest(pipe.hyperlora.embedder.embed([REVERSE]), 5)
    listed = re.findall(r"<li>(.*?) <span>(.*?)</span></li>", html)
    assert [(unescape(text), cosine) for text, cosine in listed] == [(text, f"{cosine:.2f}") for text, cosine in near]
    assert len(re.findall(r'<g class="own( now)?">', html)) == 2
    known = map_descriptions(pipe.hyperlora)
    assert len(re.findall("<circle", html)) == len(known.descriptions) + 2


def test_the_last_answer_is_shown_token_by_token(model: Model, pipe: hyperlora.Pipeline) -> None:
    turns = [Turn("Hello.", "a", "Hi."), Turn("one two", "b", "two <i>one</i>", "stop")]
    typed = json.dumps({"system": "Be brief."})
    html = Understand(model).tokens(shelved(REVERSE), False, written(turns), typed)
    shown = "".join(map(unescape, re.findall(r"<span[^>]*>(.*?)</span>", html, re.DOTALL)))
    assert shown.strip() == "two <i>one</i>"
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
    ]
    chat.append({"role": "user", "content": "one two"})
    tokens = disagreements(pipe, chat, "two <i>one</i>", pipe.adapt(REVERSE), False)
    others = [token for token in tokens if token.instead != token.text]
    assert len(re.findall(r'<span class="(?:more|less) other"', html)) == len(others)


@pytest.mark.parametrize(
    ("chosen", "shelf", "sentence"),
    [
        ("", "[]", "Select an adapter first"),
        ("{", "[]", "is damaged"),
        (shelved(REVERSE), "{}", "is damaged"),
        (shelved(REVERSE), '["{"]', "is damaged"),
        (json.dumps({"name": "", "description": "a", "strength": 1, "recipe": {"upload": "0" * 64}}), "[]", "again"),
    ],
)
def test_what_cannot_be_shown_says_why(model: Model, chosen: str, shelf: str, sentence: str) -> None:
    assert sentence in text_of(Understand(model).show(chosen, shelf))


def test_without_an_answer_there_is_nothing_to_look_at(model: Model) -> None:
    assert "Ask something first" in Understand(model).tokens(shelved(REVERSE), False, "[]", "")
