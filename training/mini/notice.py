"""Below which similarity to every training description an adapter may not help (App. A.4)."""

from collections.abc import Mapping, Sequence

import torch

from hyperlora.generator import HyperLoRA

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
