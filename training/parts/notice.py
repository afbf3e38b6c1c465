"""Below which similarity to every training description an adapter may not help (App. A.4)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import torch

from hyperlora.generator import HyperLoRA

SHIPPED = 2500  # descriptions: what the notice needs; with all of them a checkpoint would be over 10 MB
FALSE_NOTICES = 0.05  # the part of descriptions of trained tasks that may get a notice


def nearest_similarity(hyperlora: HyperLoRA, texts: Sequence[str]) -> torch.Tensor:
    """Cosine of each text with the nearest training description, float32 [n]."""
    return torch.tensor([cosine for _, cosine in hyperlora.nearest(hyperlora.embedder.embed(list(texts)))])


def measure_threshold(
    hyperlora: HyperLoRA, unseen: Sequence[str], others: Mapping[str, Sequence[str]]
) -> tuple[float, dict[str, float]]:
    """The similarity that one in twenty `unseen` descriptions of trained tasks has less of; so many get a notice.

    others: texts by what they are. Gives the threshold, and the share of each kind and of `unseen` that it flags.
    """
    similarity = {"unseen": nearest_similarity(hyperlora, unseen)}
    similarity |= {kind: nearest_similarity(hyperlora, texts) for kind, texts in others.items()}
    threshold = round(float(similarity["unseen"].quantile(FALSE_NOTICES)), 3)
    return threshold, {kind: round((found < threshold).float().mean().item(), 4) for kind, found in similarity.items()}


def shipped(hyperlora: HyperLoRA) -> HyperLoRA:
    """The same with a random part of its training descriptions, always the same: what comes along."""
    count = len(hyperlora.descriptions)
    kept = sorted(Random(0).sample(range(count), min(count, SHIPPED)))
    hyperlora.set_descriptions([hyperlora.descriptions[i] for i in kept], hyperlora.embeddings[kept])
    return hyperlora


def add_notice(folder: Path, unseen: Sequence[str], others: Mapping[str, Sequence[str]], report: Path) -> None:
    """Measure the threshold of a saved hypernetwork as shipped, and store it there; what it flags is in `report`."""
    threshold, flagged = measure_threshold(shipped(HyperLoRA.from_pretrained(folder)), unseen, others)
    hyperlora = HyperLoRA.from_pretrained(folder)
    hyperlora.config.notice_threshold = threshold
    hyperlora.save_pretrained(folder)
    report.write_text(json.dumps({"threshold": threshold, "flagged": flagged}, indent=1) + "\n")
