"""Shapes of bases and hypernetworks against real modules and the counts that are known."""

from pathlib import Path

import pytest
import torch

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.config import HyperLoRAConfig
from hyperlora.errors import UserError
from hyperlora.hypernetwork import HyperNetwork
from hyperlora.memory import SHAPES, BaseShape, HyperShape

TARGETS = ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mistral-7b", 7_241_732_096), ("llama-3.1-8b", 8_030_261_248), ("gemma-2-2b", 2_614_341_888)],
)
def test_the_named_bases_have_their_makers_counts(name, parameters):
    assert SHAPES[name].parameters == parameters


def test_a_folder_is_read_as_it_is(tiny_base, tiny_model):
    base = BaseShape.from_path(tiny_base)
    assert base.parameters == sum(parameter.numel() for parameter in tiny_model.parameters())
    assert base.bytes("float32") == tiny_model.get_memory_footprint(return_buffers=False)
    assert base.targets(TARGETS) == AdaptedModel(tiny_model, TARGETS).target_modules


@pytest.mark.parametrize("head", ["L", "M", "S"])
def test_a_hypernetwork_has_the_papers_count(head):
    """App. C, with 1024 values a description instead of its 16."""
    assert HyperShape(SHAPES["mistral-7b"], head).parameters == {"L": 55_317_504, "M": 34_346_752, "S": 4_987_904}[head]
    base = BaseShape(layers=4, hidden=256, intermediate=704, heads=8, kv_heads=2, head_dim=32, vocab=512)
    shape = HyperShape(base, head, rank=3, target_modules=("q_proj", "v_proj", "down_proj"), d_emb=24)
    with torch.device("meta"):
        network = HyperNetwork(
            HyperLoRAConfig(head, dict(shape.targets), base.layers, d_emb=24, rank=3, offset="factors")
        )
    assert shape.parameters == sum(parameter.numel() for parameter in network.parameters())
    factors = network(torch.empty(1, 24, device="meta"))
    assert shape.adapter == sum(side.numel() for pair in factors.values() for side in pair)


def test_a_base_in_4_bits_takes_what_is_planned(tmp_path, tiny_base):
    pytest.importorskip("bitsandbytes")
    model, _ = load_base(tiny_base, dtype=torch.bfloat16, quantize="4bit")
    state = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert BaseShape.from_path(tiny_base).bytes("4bit") == pytest.approx(state, rel=0.25)  # its tables are not scaled


def test_a_config_that_is_no_dense_decoder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="mixture of experts"):
        BaseShape.from_config({"num_local_experts": 8})
    with pytest.raises(UserError, match="hidden_size"):
        BaseShape.from_config({"num_hidden_layers": 2})
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    with pytest.raises(UserError, match="a whole number as num_key_value_heads, or none"):
        BaseShape.from_config(dict.fromkeys(sizes, 8) | {"num_key_value_heads": "8"})
    for tied in (1, "false", None, []):
        with pytest.raises(UserError, match="true or false as tie_word_embeddings"):
            BaseShape.from_config(dict.fromkeys(sizes, 8) | {"tie_word_embeddings": tied})
    for config in ([], {"text_config": "x"}):
        with pytest.raises(UserError, match="should be an object of settings"):
            BaseShape.from_config(config)
    with pytest.raises(UserError, match=r"config\.json"):
        BaseShape.from_path(tmp_path)
