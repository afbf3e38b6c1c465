"""Halved linears are the same but for the rounding of their weights, in chats, in graphs, and not in training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyperlora.adapted import AdaptedModel
from hyperlora.batch import Batch
from hyperlora.graph import StepGraph
from hyperlora.halves import halve_linears, packed_weights, whole_linears


@pytest.mark.parametrize("bias", [False, True])
def test_the_weights_are_rounded_to_float16_and_nothing_else(bias):
    linear, x = nn.Linear(64, 48, bias=bias), torch.randn(3, 5, 64)
    expected = F.linear(x.double(), linear.weight.half().double(), linear.bias.double() if bias else None)
    halve_linears(linear)
    with torch.no_grad():
        actual = linear(x)
    assert actual.shape == (3, 5, 48)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)
    assert (actual - F.linear(x, linear.weight, linear.bias)).abs().max() > 1e-5


def test_gradients_are_those_of_the_whole_weights(tiny_model):
    ids = torch.arange(5, 25)[None]
    loss = tiny_model(ids, labels=ids).loss
    loss.backward()
    expected = tiny_model.model.layers[0].self_attn.q_proj.weight.grad.clone()
    tiny_model.zero_grad()
    halve_linears(tiny_model)
    again = tiny_model(ids, labels=ids).loss
    again.backward()
    assert again == loss
    torch.testing.assert_close(tiny_model.model.layers[0].self_attn.q_proj.weight.grad, expected, rtol=0, atol=0)


def test_other_dtypes_and_weights_that_float16_cannot_hold_stay(tiny_model):
    halve_linears(tiny_model.bfloat16())
    assert packed_weights(tiny_model) == []
    large = nn.Linear(4, 4)
    large.weight.data[0, 0] = 1e5
    halve_linears(large)
    assert packed_weights(large) == []


@torch.inference_mode()
def test_halves_are_made_whole_again_and_move_to_another_dtype(tiny_model):
    ids = torch.arange(5, 25)[None]
    expected = tiny_model(ids).logits
    halve_linears(tiny_model)
    assert not torch.equal(tiny_model(ids).logits, expected)
    whole_linears(tiny_model)
    assert packed_weights(tiny_model) == [] and torch.equal(tiny_model(ids).logits, expected)
    assert tiny_model.bfloat16()(ids).logits.dtype == torch.bfloat16


def test_without_the_kernels_nothing_changes(tiny_model, monkeypatch):
    monkeypatch.setattr(torch.ops.quantized, "linear_prepack_fp16", lambda *args: (_ for _ in ()).throw(RuntimeError()))
    halve_linears(tiny_model)
    assert packed_weights(tiny_model) == []


@torch.inference_mode()
def test_a_step_over_halved_linears_is_recorded(tiny_model, make_adapter):
    adapted = AdaptedModel(tiny_model, ["q_proj", "v_proj"])
    before = tiny_model(torch.tensor([[1, 7]])).logits
    halve_linears(tiny_model)
    graph, batch = StepGraph(adapted), Batch([None], pad=torch.zeros(1, dtype=torch.long), length=1)
    graph.record()
    with adapted.use([adapted.load(make_adapter(1))]):
        expected = tiny_model(torch.tensor([[1, 7]])).logits
        tiny_model(torch.tensor([[1]]), past_key_values=batch.cache, use_cache=True)
        actual = graph.bind(batch)(torch.tensor([[7]]), torch.tensor([[1]]))
    torch.testing.assert_close(actual[:, -1], expected[:, -1], rtol=0, atol=1e-5)
    assert (before - expected).abs().max() > 1e-3
