"""A map of the training descriptions, by principal component analysis, into which any description can be put."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA


@dataclass
class DescriptionMap:
    """The plane in which the training descriptions, as directions, differ most; all on the CPU, float32."""

    descriptions: list[str]
    points: Tensor
    """[len(descriptions), 2], from -2 to 2: where they are."""
    explained: float
    """The share, from 0 to 1, of the descriptions' variance that the map shows."""
    mean: Tensor
    """[d_emb], of the directions."""
    axes: Tensor
    """[d_emb, 2], of length 1 each, the one with more variance first."""

    def place(self, embeddings: Tensor) -> Tensor:
        """Embeddings [n, d_emb], such as `HyperLoRA.embedder` gives, of any length -> points [n, 2]."""
        return (F.normalize(embeddings.cpu().float(), dim=-1) - self.mean) @ self.axes


def map_descriptions(hyperlora: HyperLoRA) -> DescriptionMap:
    """The map of a hypernetwork's training descriptions, always the same; `UserError` where it has none."""
    if not hyperlora.descriptions:
        raise UserError("This hypernetwork came without its training descriptions, so there is no map of them.")
    rows = F.normalize(hyperlora.embeddings.cpu().double(), dim=-1)
    mean = rows.mean(dim=0)
    values, vectors = torch.linalg.eigh((rows - mean).mT @ (rows - mean))  # in ascending order
    axes = vectors[:, [-1, -2]]
    # Either sign of an axis would do: the same one on every machine.
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    explained = float(values[-2:].sum() / values.sum().clamp(min=1e-12))
    found = DescriptionMap(list(hyperlora.descriptions), torch.empty(0, 2), explained, mean.float(), axes.float())
    found.points = found.place(hyperlora.embeddings)
    return found
