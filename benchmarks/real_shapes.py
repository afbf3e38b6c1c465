"""Random base models of real shapes, made where they will be used, and adapters for them."""

import argparse
import copy
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from benchmarks.measure import add_device
from hyperlora.adapted import AdaptedModel
from hyperlora.lora import Adapter
from hyperlora.memory import SHAPES as REAL
from hyperlora.memory import BaseShape
from hyperlora.presets import asset_or_hub, get_preset

TARGETS = ["q_proj", "v_proj"]
SHAPES = {
    "mini": BaseShape.from_path(asset_or_hub(get_preset("mini").base)),
    "1b": BaseShape(22, 2048, 5632, 32, 4, 64, 32000),  # TinyLlama's
    "mistral-7b": REAL["mistral-7b"],
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_shape(options: argparse.ArgumentParser, shape: str, layers: int | None = None) -> None:
    """Options: `shape`, `layers`, `device`."""
    options.add_argument("--shape", choices=SHAPES, default=shape, help=f"of the base model (default: {shape})")
    usual = "all" if layers is None else str(layers)
    options.add_argument("--layers", type=int, default=layers, help=f"so many layers of it alone (default: {usual})")
    add_device(options)


def chosen_shape(args: argparse.Namespace) -> BaseShape:
    shape = SHAPES[args.shape]
    return shape if args.layers is None else replace(shape, layers=args.layers)


def random_base(shape: BaseShape, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A Mistral of that shape with random weights, frozen, in evaluation mode; nothing is ever there twice."""
    config = MistralConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32768,
        sliding_window=None,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.to_empty(device=device).tie_weights()
    model.initialize_weights()
    return model.eval().requires_grad_(False)


def same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Another model over the same tensors, whose hooks and modules are its own."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def random_adapter(adapted: AdaptedModel, dtype: torch.dtype = torch.float32) -> Adapter:
    """Rank 8 on every target, on the base's device; its effect is easily seen."""
    device = adapted.model.get_input_embeddings().weight.device
    weights = {
        module: tuple(
            torch.randn(size, device=device).mul_(0.02).to(dtype)
            for size in ((adapted.num_layers, 8, d_in), (adapted.num_layers, d_out, 8))
        )
        for module, (d_in, d_out) in adapted.target_modules.items()
    }
    return Adapter(weights, alpha=16.0, use_rslora=True)
