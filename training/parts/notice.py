"""When an adapter may not help: how far from every training description (App. A.4), and beyond which ‖ΔW‖."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from hyperlora.config import HyperLoRAConfig
from hyperlora.generator import CONFIG, HyperLoRA

SHIPPED = 2500  # descriptions: what the notice needs; with all of them a checkpoint would be over 10 MB
FALSE_NOTICES = 0.05  # the part of descriptions of trained tasks that may get a notice
NORMS = (0.01, 0.99)  # the quantiles of ‖ΔW‖ beyond which an adapter gets one


def nearest_similarity(hyperlora: HyperLoRA, texts: Sequence[str]) -> torch.Tensor:
    """Cosine of each text with the nearest training description, float32 [n]."""
    return torch.tensor([cosine for [(_, cosine)] in hyperlora.nearest(hyperlora.embedder.embed(list(texts)))])


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
    """The same with a part of its training descriptions, always the same and spread over the tasks: what comes along.

    The first is any; each further one is that which is farthest, by cosine, from all that are taken, so that of many
    wordings of one task few are, and what is near to any of them stays near to one.
    """
    if len(hyperlora.descriptions) > SHIPPED:
        kept = spread(hyperlora.embeddings, SHIPPED)
        hyperlora.set_descriptions([hyperlora.descriptions[i] for i in kept], hyperlora.embeddings[kept])
    return hyperlora


def spread(embeddings: torch.Tensor, count: int) -> list[int]:
    """The numbers of `count` of the rows of [n, d_emb], in order: the farthest from those before, beginning at row 0
    (Gonzalez 1985: no row is farther from a taken one than twice what the best choice could reach)."""
    rows = F.normalize(embeddings.float(), dim=-1)
    kept, nearest = [0], rows @ rows[0]
    nearest[0] = 2
    while len(kept) < count:
        kept.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, rows @ rows[kept[-1]])
        nearest[kept[-1]] = 2  # more than any cosine: not again
    return sorted(kept)


def measure_norms(hyperlora: HyperLoRA) -> tuple[float, float]:
    """The 1st and 99th percentile of ‖ΔW‖ over the adapters of the training descriptions, to four digits."""
    batches = hyperlora.embeddings.float().split(64)
    norms = [adapter.norm() for batch in batches for adapter in hyperlora.generate(embeddings=batch)]
    low, high = torch.tensor(norms).quantile(torch.tensor(NORMS)).tolist()
    return float(f"{low:.4g}"), float(f"{high:.4g}")


def add_norms(folder: Path) -> None:
    """Measure the range of ‖ΔW‖ of a saved hypernetwork as shipped, and store it in its config, the only file that
    changes."""
    config = HyperLoRAConfig.load(folder / CONFIG)
    config.norm_range = measure_norms(shipped(HyperLoRA.from_pretrained(folder)))
    config.save(folder / CONFIG)


def add_notice(folder: Path, unseen: Sequence[str], others: Mapping[str, Sequence[str]], report: Path) -> None:
    """Measure the threshold of a saved hypernetwork as shipped, and the range of its adapters' ‖ΔW‖, and store both
    there; what the threshold flags is in `report`."""
    threshold, flagged = measure_threshold(shipped(HyperLoRA.from_pretrained(folder)), unseen, others)
    config = HyperLoRAConfig.load(folder / CONFIG)
    config.notice_threshold = threshold
    config.save(folder / CONFIG)
    add_norms(folder)
    report.write_text(json.dumps({"threshold": threshold, "flagged": flagged}, indent=1) + "\n")
