"""From an adapter in memory to a model that is ready to chat with it, and what many such swaps leave in memory.

Ours is `AdaptedModel.load` and `use`. PEFT's two ways are a folder (written with no fsync, then `load_adapter` and
`set_adapter`) and a hot swap of the tensors in place. All get tensors in the form that they take, made beforehand. The
second table starts at a task embedding: one hypernetwork (head M), each of the three ways behind it.
"""

import tempfile
from functools import cache
from itertools import count
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter_from_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from benchmarks.hypernetwork import D_EMB
from benchmarks.measure import arguments, held_mb, medians, print_table, synchronize
from benchmarks.real_shapes import TARGETS, random_adapter
from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.config import HyperLoRAConfig
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter

SWAPS = 10  # PEFT's folders stay loaded, and each one makes the next slower


@cache
def shared_weight(shape: torch.Size, device: str) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, device=device), requires_grad=False)


def attention_of_mistral_7b(device: str) -> PreTrainedModel:
    """32 layers with Mistral-7B's attention sizes that share their weights: a place to put LoRAs, not to run them."""
    config = MistralConfig(num_hidden_layers=32, hidden_size=4096, intermediate_size=8, vocab_size=8)
    with torch.device("meta"):
        model = MistralForCausalLM(config)
    for module in list(model.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, shared_weight(weight.shape, device))
    return model


def random_hyperlora(adapted: AdaptedModel, device: str) -> HyperLoRA:
    """For that base, with the offset of an SFT hypernetwork."""
    config = HyperLoRAConfig("M", dict(adapted.target_modules), adapted.num_layers, D_EMB, offset="factors")
    hyperlora = HyperLoRA(config)
    for head in hyperlora.network.heads.values():
        nn.init.normal_(head.weight, std=0.02)
    return hyperlora.to(device)


def compare(
    base: str, models: list[PreTrainedModel], device: str, repetitions: int
) -> tuple[list[list[str]], list[list[str]]]:
    """The rows of both tables for one base; `models` are three of it."""
    adapted = AdaptedModel(models[0], TARGETS)
    adapter = random_adapter(adapted)
    settings, state = adapter.to_peft()
    config = LoraConfig(**settings)
    folders, hot = (get_peft_model(model, LoraConfig(**settings), adapter_name="first") for model in models[1:])
    names = (f"adapter{i}" for i in count())

    def ours(adapter: Adapter) -> None:
        slot = adapted.load(adapter)
        with adapted.use([slot]):
            pass  # here it would chat
        adapted.unload(slot)

    def by_folder(state: dict[str, torch.Tensor]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            save_file(state, Path(folder) / "adapter_model.safetensors")
            name = next(names)
            folders.load_adapter(folder, adapter_name=name)
            folders.set_adapter(name)

    def in_place(state: dict[str, torch.Tensor]) -> None:
        hotswap_adapter_from_state_dict(hot, state, "first", config)

    def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key.replace(".weight", ".first.weight"): tensor for key, tensor in state.items()}

    in_place_state = renamed(state)

    def forget() -> None:
        folders.set_adapter("first")
        for name in set(folders.peft_config) - {"first"}:
            folders.delete_adapter(name)

    ways = {
        "HyperLoRA: `load`, `use`": lambda: ours(adapter),
        "PEFT: save, `load_adapter`, `set_adapter`": lambda: by_folder(state),
        "PEFT: `hotswap_adapter_from_state_dict`": lambda: in_place(in_place_state),
    }
    seconds = medians(ways, repetitions, after=forget)

    hyperlora, embedding = random_hyperlora(adapted, device), torch.randn(1, D_EMB, device=device)

    def generated() -> Adapter:
        return hyperlora.generate(embeddings=embedding)[0]

    generating = {
        "HyperLoRA": lambda: ours(generated()),
        "PEFT, a folder": lambda: by_folder(generated().to_peft()[1]),
        "PEFT, in place": lambda: in_place(renamed(generated().to_peft()[1])),
    }
    from_embedding = medians(generating, repetitions, after=forget)

    # Each swap has tensors of its own here, as each new description would.
    def copy_ours() -> None:
        ours(Adapter({m: (A.clone(), B.clone()) for m, (A, B) in adapter.weights.items()}, alpha=16.0, use_rslora=True))

    growth = []
    for swap in (
        copy_ours,
        lambda: by_folder({key: tensor.clone() for key, tensor in state.items()}),
        lambda: in_place({key: tensor.clone() for key, tensor in in_place_state.items()}),
    ):
        swap()
        synchronize()
        before = held_mb(device)
        for _ in range(SWAPS):
            swap()
        growth.append(held_mb(device) - before)

    def rows(seconds: dict[str, float]) -> list[list[str]]:
        first = next(iter(seconds.values()))
        return [[f"{base}; {way}", f"{1000 * taken:,.2f}", f"{taken / first:.1f} x"] for way, taken in seconds.items()]

    swaps = [[*row, f"{grown:,.1f}"] for row, grown in zip(rows(seconds), growth, strict=True)]
    return swaps, rows(from_embedding)


def main() -> None:
    args = arguments(__doc__, repetitions=20, device=True)
    mini = [load_base(args.base, device=args.device)[0] for _ in range(3)]
    large = [attention_of_mistral_7b(args.device) for _ in range(3)]
    tables = [compare(base, models, args.device, args.repetitions) for base, models in (("mini", mini), ("7B", large))]
    swaps, from_embedding = ([row for rows in kind for row in rows] for kind in zip(*tables, strict=True))
    print_table(["base; way", "ms a swap", "of ours", f"MB more after {SWAPS} swaps"], swaps)
    print()
    print_table(["from a task embedding to ready", "ms", "of ours"], from_embedding)


if __name__ == "__main__":
    main()
