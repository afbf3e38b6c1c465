"""From an adapter in memory to a model that is ready to chat with it, and what a hundred such swaps leave in memory.

Ours is `AdaptedModel.load` and `use`. PEFT's two ways are a folder (written with no fsync, then `load_adapter` and
`set_adapter`) and a hot swap of the tensors in place. All get tensors in the form that they take, made beforehand.
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

from benchmarks.measure import arguments, medians, print_table, resident_mb
from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.lora import Adapter

SWAPS = 100


@cache
def shared_weight(shape: torch.Size) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


def attention_of_mistral_7b() -> PreTrainedModel:
    """32 layers with Mistral-7B's attention sizes that share their weights: a place to put LoRAs, not to run them."""
    config = MistralConfig(num_hidden_layers=32, hidden_size=4096, intermediate_size=8, vocab_size=8)
    with torch.device("meta"):
        model = MistralForCausalLM(config)
    for module in list(model.modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, shared_weight(weight.shape))
    return model


def random_adapter(adapted: AdaptedModel) -> Adapter:
    """Rank 8 on every target."""
    weights = {
        module: (torch.randn(adapted.num_layers, 8, d_in), torch.randn(adapted.num_layers, d_out, 8))
        for module, (d_in, d_out) in adapted.target_modules.items()
    }
    return Adapter(weights, alpha=16.0, use_rslora=True)


def compare(base: str, models: list[PreTrainedModel], repetitions: int) -> list[list[str]]:
    """The table's rows for one base; `models` are three of it."""
    adapted = AdaptedModel(models[0], ["q_proj", "v_proj"])
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

    in_place_state = {key.replace(".weight", ".first.weight"): tensor for key, tensor in state.items()}

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
        before = resident_mb()
        for _ in range(SWAPS):
            swap()
        growth.append(resident_mb() - before)

    first = next(iter(seconds.values()))
    return [
        [f"{base}; {way}", f"{1000 * taken:,.2f}", f"{taken / first:.1f} x", f"{grown:,.1f}"]
        for (way, taken), grown in zip(seconds.items(), growth, strict=True)
    ]


def main() -> None:
    args = arguments(__doc__, repetitions=20)
    rows = compare("mini", [load_base(args.base)[0] for _ in range(3)], args.repetitions)
    rows += compare("7B shapes", [attention_of_mistral_7b() for _ in range(3)], args.repetitions)
    print_table(["base; way", "ms a swap", "of ours", f"MB more after {SWAPS} swaps"], rows)


if __name__ == "__main__":
    main()
