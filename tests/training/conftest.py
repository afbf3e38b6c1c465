"""Tiny tasks, and a stand-in for the sentence encoder."""

import zlib

import pytest
import torch

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.embedder import scale_embedding
from training.tasks import Task


class WordEmbedder:
    """Every text its own random direction; no model to load."""

    d_emb = 16

    def embed(self, texts: list[str]) -> torch.Tensor:
        rows = [torch.randn(16, generator=torch.Generator().manual_seed(zlib.crc32(t.encode()))) for t in texts]
        return scale_embedding(torch.stack(rows))


def copy(name: str, operation) -> Task:
    inputs = [a + b for a in "abcdef" for b in "stuvwx"]
    examples = [{"input": text, "output": operation(text)} for text in inputs]
    return Task(name, [f"Do {name}.", f"Please {name}."], [f"Now {name}."], examples[:30], examples[30:])


@pytest.fixture
def embedder() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture
def tasks() -> list[Task]:
    """first: "as" -> "a"; second: "as" -> "s"; both: "as" -> "as"."""
    return [copy("first", lambda t: t[0]), copy("second", lambda t: t[1]), copy("both", str)]


@pytest.fixture
def adapted(tiny_model) -> AdaptedModel:
    return AdaptedModel(tiny_model, ["q_proj", "v_proj"])


@pytest.fixture
def tokenizer(tiny_base):
    return load_base(tiny_base)[1]


@pytest.fixture
def strong(make_adapter):
    """strong(seed): an adapter that changes the random base's answers."""
    return lambda seed: make_adapter(seed).scaled(8.0)
