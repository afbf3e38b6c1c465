"""The exported zip is a plain PEFT folder with a card, and gives the same logits in PEFT."""

import zipfile

import torch
from peft import PeftModel
from transformers import MistralForCausalLM

from hyperlora.adapted import AdaptedModel
from hyperlora.export import export_zip, model_card, slug


def test_the_zip_gives_the_same_logits_in_plain_peft(tiny_base, tiny_model, make_adapter, tmp_path):
    adapter = make_adapter(1, description="Reverse the words.", base_model="tiny-base").scaled(0.5)
    path = export_zip(adapter, tmp_path / "out")
    assert path == tmp_path / "out" / "reverse-the-words.zip"
    with zipfile.ZipFile(path) as file:
        assert file.namelist() == ["adapter_config.json", "adapter_model.safetensors", "README.md"]
        file.extractall(tmp_path / "adapter")
    peft = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(tiny_base), tmp_path / "adapter").eval()
    ids = torch.arange(10).reshape(2, 5)
    adapted = AdaptedModel(tiny_model, ["q_proj", "v_proj"])
    with torch.no_grad(), adapted.use([adapted.load(adapter)] * 2):
        torch.testing.assert_close(adapted.model(ids).logits, peft(ids).logits, atol=1e-4, rtol=0)


def test_the_cards_python_runs(tiny_base, make_adapter, tmp_path, monkeypatch):
    adapter = make_adapter(1, base_model=str(tiny_base))
    with zipfile.ZipFile(export_zip(adapter, tmp_path / "a.zip")) as file:
        file.extractall(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert len(code.splitlines()) == 3 and isinstance(names["model"], PeftModel)


def test_the_same_adapter_gives_the_same_file(make_adapter, tmp_path):
    one, two = (export_zip(make_adapter(1), tmp_path / f"{name}.zip").read_bytes() for name in "ab")
    assert one == two


def test_the_card_says_what_it_is(make_adapter):
    card = model_card(
        make_adapter(1, description="Sort.\n# Not a heading", base_model="owner/base", hyperlora="owner/net")
    )
    assert "base_model: owner/base\n" in card
    assert "> Sort.\n> # Not a heading" in card
    assert (
        "a hypernetwork (owner/net)" in card and "Rank 8, alpha\n16 with rsLoRA's scale, for q_proj and v_proj" in card
    )


def test_a_name_that_is_no_hub_id_stays_out_of_the_header(make_adapter):
    card = model_card(make_adapter(1, base_model="evil/base\ntags: [x]"))
    assert "\ntags: [x]" not in card.split("---")[1]
    assert "base_model:" not in model_card(make_adapter(1, base_model="tiny-base")).split("---")[1]


def test_file_names():
    assert slug("Reverse the ORDER of words!") == "reverse-the-order-of-words"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("日本語") == slug("") == slug(None) == "adapter"
    assert len(slug("word " * 100)) <= 48
