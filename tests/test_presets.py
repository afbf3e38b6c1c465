"""Presets name what is bundled; what is missing or damaged is said in a sentence."""

import json
import re

import pytest

from hyperlora import presets
from hyperlora.errors import UserError
from hyperlora.memory import SHAPES


def test_mini_answers_each_message_on_its_own():
    mini = presets.get_preset("mini")
    assert not mini.multi_turn and "each message on its own" in mini.description
    with pytest.raises(UserError, match=r"no preset 'maxi'; there is mistral-7b, .*, mini"):
        presets.get_preset("maxi")


def test_what_comes_from_the_hub_is_pinned_and_the_mini_model_is_the_last_resort():
    *large, small, mini = presets.PRESETS.values()
    assert (small.name, mini.name) == ("smollm2-135m", "mini")
    for preset in large:
        assert preset.name in SHAPES
        assert preset.hyperlora_subfolder.startswith("trained_t2l/")
        for revision in (preset.base_revision, preset.hyperlora_revision, preset.embedder_revision):
            assert re.fullmatch("[0-9a-f]{40}", revision)


def test_smollm2_is_a_chat_model_whose_base_goes_by_its_name_on_the_hub():
    small = presets.get_preset(presets.SMALL_PRESET)
    assert small.multi_turn and small.base == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert small.summary.startswith("SmolLM2, 135 million parameters: small, runs anywhere")


def test_assets_lie_beside_the_package_or_in_the_wheel(monkeypatch, tmp_path):
    monkeypatch.setattr(presets, "__file__", str(tmp_path / "site-packages" / "hyperlora" / "presets.py"))
    with pytest.raises(UserError, match="are missing"):
        presets.assets_dir()
    wheel = tmp_path / "site-packages" / "hyperlora" / "_assets"
    (wheel / "mini").mkdir(parents=True)
    assert presets.assets_dir() == wheel
    checkout = tmp_path / "site-packages" / "assets"
    (checkout / "mini").mkdir(parents=True)
    assert presets.assets_dir() == checkout
    with pytest.raises(UserError, match=r"A bundled model \(assets/mini/base\) is missing"):
        presets.asset_or_hub("mini/base")
    (checkout / "mini" / "base").mkdir()
    assert presets.asset_or_hub("mini/base") == str(checkout / "mini" / "base")
    assert presets.asset_or_hub("owner/model") == "owner/model"


def test_examples(monkeypatch, tmp_path):
    monkeypatch.setattr(presets, "assets_dir", lambda: tmp_path)
    with pytest.raises(UserError, match=r"examples\.json"):
        presets.load_examples()
    mini = [{"description": "Reverse the words.", "message": "a b", "answers": ["b a"]}]
    others = [{"description": "Talk like a pirate.", "message": "hi", "answers": []}]
    (tmp_path / "examples.json").write_text(json.dumps({"mini": mini, "smollm2-135m": others}))
    assert presets.load_examples("mini") == mini
    assert presets.load_examples("mistral-7b") == presets.load_examples() == others
    for damaged in ([], {}, {"smollm2-135m": {}}, {"smollm2-135m": [{"description": "Reverse the words."}]}):
        (tmp_path / "examples.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=r"examples\.json is damaged"):
            presets.load_examples()
