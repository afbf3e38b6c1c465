"""Arrow against PEFT's own, and its prototypes against the singular vectors of ΔW."""

import pytest
import torch
from peft import ArrowConfig, create_arrow_model

from hyperlora.adapted import AdaptedModel
from hyperlora.errors import UserError
from training.parts.arrow import Arrow, prototypes


@pytest.fixture
def library(make_adapter):
    """Six adapters, each with one direction that stands out, so that PEFT's 15 power iterations find it."""

    def make(seed):
        adapter = make_adapter(seed)
        for _, B in adapter.weights.values():
            B[:, :, 1:] /= 8
        return adapter

    return [make(seed) for seed in range(6)]


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture
def ids(tokenizer):
    return torch.tensor(tokenizer(["a first row of text", "and another, of 19."]).input_ids)


def test_a_prototype_is_the_leading_right_singular_vector_of_delta_w(make_adapter):
    adapter = make_adapter(1)
    for module, (A, B) in adapter.weights.items():
        found = prototypes(A, B)
        for layer in range(adapter.num_layers):
            expected = torch.linalg.svd(adapter.delta_w(module, layer)).Vh[0]
            assert torch.allclose(found[layer] * torch.sign(found[layer] @ expected), expected, atol=1e-5)


@pytest.mark.parametrize(("top_k", "temperature"), [(3, 1.0), (2, 0.3), (6, 2.0)])
def test_routing_is_pefts(library, adapted, tiny_base, tmp_path, ids, top_k, temperature):
    from hyperlora.base import load_base

    folders = [tmp_path / str(i) for i in range(len(library))]
    for adapter, folder in zip(library, folders, strict=True):
        adapter.save_pretrained(folder)
    config = ArrowConfig(top_k=top_k, router_temperature=temperature, rng_seed=0)
    peft = create_arrow_model(load_base(tiny_base)[0], [str(folder) for folder in folders], config).eval()
    base = logits(adapted.model, ids)
    with Arrow(adapted, library, top_k, temperature).use():
        routed = logits(adapted.model, ids)
    assert torch.allclose(routed, logits(peft, ids), atol=1e-5)
    assert not torch.allclose(routed, base, atol=1e-2)
    assert torch.equal(logits(adapted.model, ids), base)  # outside, nothing is left of it


def test_one_lora_is_that_lora(adapted: AdaptedModel, make_adapter, ids):
    adapter = make_adapter(1).scaled(0.5)
    with Arrow(adapted, [adapter]).use():
        routed = logits(adapted.model, ids)
    with adapted.use([adapted.load(adapter)] * len(ids)):
        assert torch.allclose(routed, logits(adapted.model, ids), atol=1e-5)


def test_a_library_that_cannot_be_routed(adapted, make_adapter):
    with pytest.raises(UserError, match="there is none"):
        Arrow(adapted, [])
    with pytest.raises(UserError, match="one rank"):
        Arrow(adapted, [make_adapter(1), make_adapter(2, rank=4)])
    with pytest.raises(UserError, match="top_k"):
        Arrow(adapted, [make_adapter(1)], top_k=0)
