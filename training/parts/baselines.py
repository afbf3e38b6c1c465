"""What a generated adapter is held against: the adapter, or the trained task's own LoRA, of the nearest description."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F

from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from training.tasks import Task


class NearestLoRA:
    """The own LoRA of the trained task with the nearest description: retrieval from a library."""

    def __init__(self, embedder, tasks: Sequence[Task], adapters: Mapping[str, Adapter]):
        """embedder: an object with `embed`. Tasks without a LoRA in `adapters`, by name, cannot be found."""
        found = [task for task in tasks if task.name in adapters]
        self.embedder = embedder
        self.adapters = [adapters[task.name] for task in found for _ in task.descriptions]
        self.embeddings = embedder.embed([text for task in found for text in task.descriptions])
        if not self.adapters:
            raise UserError("None of the trained tasks with a LoRA has a description to be found by.")

    def generate(self, texts: list[str]) -> list[Adapter]:
        cosine = F.normalize(self.embedder.embed(texts), dim=-1) @ F.normalize(self.embeddings, dim=-1).T
        return [self.adapters[i] for i in cosine.argmax(-1).tolist()]


class Retrieval:
    """The hypernetwork's adapter of the training description that is nearest, instead of the description's own."""

    def __init__(self, hyperlora: HyperLoRA):
        self.hyperlora = hyperlora

    def generate(self, texts: list[str]) -> list[Adapter]:
        nearest = self.hyperlora.nearest(self.hyperlora.embedder.embed(texts))
        return generate(self.hyperlora, [description for [(description, _)] in nearest])


def generate(hyperlora: HyperLoRA, texts: list[str]) -> list[Adapter]:
    """As `HyperLoRA.generate`, for what tasks are trained on too, such as a definition longer than the page takes."""
    return hyperlora.generate(embeddings=hyperlora.embedder.embed(texts))
