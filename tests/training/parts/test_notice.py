"""Which descriptions come along: a few of every task, however many wordings it has; what is measured over them."""

import shutil

import pytest
import torch

from hyperlora.generator import HyperLoRA
from training.parts import notice
from training.parts.notice import add_norms, measure_norms, shipped, spread


def cloud(tasks: int, wordings: list[int]) -> torch.Tensor:
    """Rows around `tasks` directions, so many of each: [sum(wordings), 64]."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(tasks, 64, generator=generator)
    rows = [centre + 0.1 * torch.randn(n, 64, generator=generator) for centre, n in zip(centres, wordings, strict=True)]
    return torch.cat(rows)


def test_a_task_of_few_wordings_is_among_those_that_are_kept():
    wordings = [200, 3, 1, 90, 2]
    of = torch.repeat_interleave(torch.arange(5), torch.tensor(wordings)).tolist()
    rows = cloud(5, wordings)
    assert {of[i] for i in spread(rows, 5)} == set(range(5))
    kept = spread(rows, 40)
    assert kept == sorted(set(kept)) and len(kept) == 40 and kept == spread(rows * 3, 40)
    assert spread(torch.ones(4, 8), 3) == [0, 1, 2]  # the same text four times


def test_the_shipped_descriptions_keep_their_embeddings(make_config, monkeypatch):
    monkeypatch.setattr(notice, "SHIPPED", 10)
    hyperlora = HyperLoRA(make_config(d_emb=64))
    rows = cloud(3, [20, 20, 2])
    hyperlora.set_descriptions([f"text {i}" for i in range(42)], rows)
    few = shipped(hyperlora)
    numbers = [int(text.split()[1]) for text in few.descriptions]
    assert len(numbers) == 10 and torch.equal(few.embeddings, rows[numbers].half())
    assert shipped(few).descriptions == [f"text {i}" for i in numbers]  # what is few enough stays


def test_the_norms_are_kept_and_the_weights_stay(tiny_hyperlora, minilm, tmp_path):
    folder = shutil.copytree(tiny_hyperlora, tmp_path / "copy")
    hyperlora = HyperLoRA.from_pretrained(folder)
    texts = [f"Task {i}: do it {i} times." for i in range(200)]
    hyperlora.set_descriptions(texts, minilm.embed(texts))
    hyperlora.save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    add_norms(folder)
    changed = [name for name, content in before.items() if (folder / name).read_bytes() != content]
    assert changed == ["hyperlora_config.json"]
    found = HyperLoRA.from_pretrained(folder)
    norms = sorted(adapter.norm() for adapter in found.generate(texts))
    assert found.config.norm_range == measure_norms(found) == pytest.approx((norms[2], norms[197]), rel=0.01)
    hyperlora.config.norm_range = found.config.norm_range
    assert hyperlora.config == found.config and norms[0] < found.config.norm_range[0] < norms[-1]
