"""How many bytes a base model and a hypernetwork take to load and to chat, from their shapes alone: estimates.

What training takes is in `training/parts/memory.py`, from the same shapes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hyperlora.config import HyperLoRAConfig, read_json
from hyperlora.errors import UserError
from hyperlora.hypernetwork import HyperNetwork

GB = 1e9
OVERHEAD = 1.2 * GB  # a CUDA context, the libraries' workspaces and the allocator's gaps
# Bytes a weight of the layers' linears. 4 bits: NF4 in blocks of 64 with 8-bit constants, themselves in blocks of 256.
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}
CACHED = 20e6  # weights of a base that a processor's cache holds, so that reading fewer bytes of it gains nothing

Parts = dict[str, float]
"""What takes memory -> bytes."""


@dataclass(frozen=True)
class BaseShape:
    """A dense decoder: attention with grouped keys and values, a gated MLP, RMSNorms."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    """Whether the token embedding is the output matrix too."""
    norms: int = 2
    """RMSNorms a layer."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Name -> (d_in, d_out) of a layer's linears."""
        h, f, q, kv = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        return attention | {"gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h)}

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's linears."""
        return sum(d_in * d_out for d_in, d_out in self.linears.values())

    @property
    def other_weights(self) -> int:
        """Embeddings and norms."""
        return self.hidden * (self.vocab * (1 if self.tied else 2) + self.layers * self.norms + 1)

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_weights + self.other_weights

    def bytes(self, dtype: str) -> float:
        """The weights in memory; with 4 or 8 bits all but the layers' linears is bfloat16."""
        return self.layers * self.layer_weights * BYTES[dtype] + self.other_weights * max(2.0, BYTES[dtype])

    def targets(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The named linears with their sizes; `UserError` for one that is not there."""
        for name in names:
            if name not in self.linears:
                raise UserError(f"The base model has no {name} in its layers; it has {', '.join(self.linears)}.")
        return {name: self.linears[name] for name in names}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "BaseShape":
        """The shape that a config.json says, read as JSON. Raises `UserError` where it is no dense decoder's."""
        config = config.get("text_config") or config if isinstance(config, Mapping) else None
        if not isinstance(config, Mapping):
            raise UserError("The base model's config.json is damaged: it should be an object of settings.")
        kind = str(config.get("model_type", ""))
        if config.get("num_local_experts") or config.get("num_experts"):
            raise UserError("The base model is a mixture of experts; only dense models can be planned for.")
        names = (
            "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size",
        )  # fmt: skip
        for name in names:
            if type(config.get(name)) is not int or config[name] < 1:
                raise UserError(f"The base model's config.json should have a whole number as {name}.")
        for name in ("num_key_value_heads", "head_dim"):
            if config.get(name) is not None and (type(config[name]) is not int or config[name] < 1):
                raise UserError(f"The base model's config.json should have a whole number as {name}, or none.")
        tied = config.get("tie_word_embeddings", kind.startswith("gemma"))
        if type(tied) is not bool:
            raise UserError("The base model's config.json should have true or false as tie_word_embeddings.")
        layers, hidden, intermediate, heads, vocab = (config[name] for name in names)
        kv_heads, head_dim = config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads
        norms = 4 if kind.startswith(("gemma2", "gemma3")) else 2
        return cls(layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied, norms)

    @classmethod
    def from_path(cls, path: str | Path) -> "BaseShape":
        """The shape of the model in a folder, of which only config.json is read, or in a GGUF file, its header."""
        if Path(path).is_file():
            from hyperlora.gguf import read_config

            return cls.from_config(read_config(path))
        return cls.from_config(read_json(Path(path) / "config.json"))


SHAPES = {
    "mistral-7b": BaseShape(32, 4096, 14336, 32, 8, 128, 32000),
    "llama-3.1-8b": BaseShape(32, 4096, 14336, 32, 8, 128, 128256),
    "gemma-2-2b": BaseShape(26, 2304, 9216, 8, 4, 256, 256000, tied=True, norms=4),
    "smollm2-135m": BaseShape(30, 576, 1536, 9, 3, 64, 49152, tied=True),
}


@dataclass(frozen=True)
class HyperShape:
    """A hypernetwork for `base` and the adapters that it makes."""

    base: BaseShape
    head: str = "M"
    rank: int = 8
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    d_emb: int = 1024
    latent_size: int = 128
    head_size: int = 512

    @property
    def targets(self) -> dict[str, tuple[int, int]]:
        return self.base.targets(self.target_modules)

    @property
    def adapter(self) -> int:
        """Weights of one adapter."""
        return self.base.layers * self.rank * sum(map(sum, self.targets.values()))

    @cached_property
    def network(self) -> HyperNetwork:
        """The hypernetwork itself, without memory."""
        sizes = {"rank": self.rank, "latent_size": self.latent_size, "head_size": self.head_size}
        config = HyperLoRAConfig(self.head, self.targets, self.base.layers, self.d_emb, offset="factors", **sizes)
        with torch.device("meta"):
            return HyperNetwork(config)

    @property
    def parameters(self) -> int:
        """Trained weights of a hypernetwork with an offset or z-scores."""
        return sum(parameter.numel() for parameter in self.network.parameters())


def cache(base: BaseShape, rows: int, tokens: int, element: int = 2) -> float:
    """Bytes of the keys and values of `rows` rows of `tokens` tokens."""
    return float(2 * base.layers * base.kv_heads * base.head_dim * element * rows * tokens)


def chat(shape: HyperShape, rows: int, tokens: int, dtype: str = "bfloat16", slots: int = 0) -> Parts:
    """Generating with `rows` rows of up to `tokens` tokens, each with its own adapter; `slots` more adapters wait.

    What the page and the evaluation need: the base, the hypernetwork in float32, keys and values, adapters.
    """
    base = shape.base
    element = 4 if dtype == "float32" else 2
    return {
        "base": base.bytes(dtype),
        "hypernetwork": 4.0 * (shape.parameters + shape.adapter),
        "keys and values": cache(base, rows, tokens, element),
        "adapters": 4.0 * shape.adapter * (2 * rows + slots),
        "work": rows * (tokens * element * 3 * base.intermediate + 8.0 * base.vocab),
        "overhead": OVERHEAD,
    }


def loading(base: BaseShape, dtype: str = "bfloat16") -> Parts:
    """Reading the base onto its device, a tensor at a time, as transformers does.

    A linear that gets few bits lies there in bfloat16 until it has them, and for 8 bits in float16 too.
    """
    largest = max(d_in * d_out for d_in, d_out in base.linears.values())
    twice = {"4bit": 2.0, "8bit": 4.0}.get(dtype, 0.0) * largest
    return {"base": base.bytes(dtype), "a linear before its bits": twice, "overhead": OVERHEAD}


def serving(shape: HyperShape, dtype: str = "bfloat16", rows: int = 1, tokens: int = 2048, slots: int = 64) -> float:
    """Bytes that the device must have free to load the pipeline and chat: the greater of the two peaks."""
    parts = loading(shape.base, dtype), chat(shape, rows, tokens, dtype, slots)
    return max(sum(peak.values()) for peak in parts)
