"""Below which similarity to every training description an adapter may not help (App. A.4)."""

import torch

from hyperlora.generator import HyperLoRA


def nearest_similarity(hyperlora: HyperLoRA, texts: list[str]) -> torch.Tensor:
    """Cosine of each text with the nearest training description, float32 [n]."""
    return torch.tensor([cosine for _, cosine in hyperlora.nearest(hyperlora.embedder.embed(texts))])


def measure_threshold(hyperlora: HyperLoRA, unseen: list[str], random: list[str]) -> tuple[float, dict[str, float]]:
    """The middle between the lowest twentieth of unseen descriptions and the highest twentieth of random strings.

    Gives the threshold and the shares of both that it flags.
    """
    good, bad = nearest_similarity(hyperlora, unseen), nearest_similarity(hyperlora, random)
    threshold = round(float(good.quantile(0.05) + bad.quantile(0.95)) / 2, 3)
    flagged = {"unseen": (good < threshold).float().mean().item(), "random": (bad < threshold).float().mean().item()}
    return threshold, {f"flagged_{key}": round(value, 4) for key, value in flagged.items()}
