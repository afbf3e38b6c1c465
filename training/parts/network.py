"""What SFT and reconstruction share: the hypernetwork that they start from, and what stands for a task."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import torch
from torch import Tensor

from hyperlora.config import MAX_SIZE, HyperLoRAConfig
from hyperlora.embedder import MINILM
from hyperlora.files import writing
from hyperlora.generator import HyperLoRA
from training.parts.options import option
from training.tasks import Task, descriptions_of


@dataclass
class NetworkOptions:
    """What SFT and reconstruction both ask of the hypernetwork and its inputs."""

    head: Literal["L", "M", "S"] = option("M", "L: A and B at once, M: one of them, S: one rank of one")
    task_input: Literal["text", "one_hot", "learned"] = option("text", "what stands for a task (Sec. 3.2)")
    learned_size: int = option(64, "size of a learned task vector", least=1)
    latent_size: int = option(128, "width of the hypernetwork's blocks (Fig. 8)", least=4, most=MAX_SIZE)
    head_size: int = option(512, "size of a head's input (Fig. 8)", least=1, most=MAX_SIZE)
    embedder: str = option(MINILM, "sentence encoder of the descriptions, or last_token for the base itself")
    dropout: float = option(0.05, "dropout in the hypernetwork (Fig. 8)", least=0, most=0.99)
    max_descriptions: int = option(128, "at most so many descriptions a task are trained on (App. G)", least=1)
    seed: int = option(0, "of the hypernetwork's start, the data and the noise", least=0)


def untrained(config: NetworkOptions, names: Sequence[str], descriptions: list[str], embedder, **shape) -> HyperLoRA:
    """The hypernetwork that a stage starts from, for the tasks of these names, with their training descriptions in it.

    embedder: an object with `embed` and `d_emb`, read only where the task input is text. shape: the fields of
    `HyperLoRAConfig` that are not among the stage's settings.
    """
    text, count = config.task_input == "text", len(names)
    torch.manual_seed(config.seed)
    hyperlora = HyperLoRA(
        HyperLoRAConfig(
            head=config.head,
            d_emb=embedder.d_emb if text else {"one_hot": count, "learned": config.learned_size}[config.task_input],
            task_input=config.task_input,
            num_tasks=None if text else count,
            task_names=None if text or len(set(names)) < count else list(names),  # a library may have a task twice
            dropout=config.dropout,
            embedder=config.embedder,
            latent_size=config.latent_size,
            head_size=config.head_size,
            **shape,
        )
    )
    if text:
        hyperlora.set_descriptions(descriptions, embedder.embed(descriptions))
        hyperlora.embedder = embedder
    return hyperlora


def trained_descriptions(task: Task, config: NetworkOptions) -> list[str]:
    """The descriptions of a task that training draws from: all, or `max_descriptions` of them, always the same.

    Raises `UserError` where the task input is text and there are none.
    """
    texts = descriptions_of(task) if config.task_input == "text" else task.descriptions
    most = config.max_descriptions
    if len(texts) <= most:
        return texts
    kept = sorted(Random(f"{config.seed} {task.name}").sample(range(len(texts)), most))
    return [texts[i] for i in kept]


def task_inputs(hyperlora: HyperLoRA, tasks: Sequence[Task], kind: str) -> tuple[Tensor, list[list[int]]]:
    """What stands for each task: the inputs of all (text [n, d_emb], one-hot, or ids [n]), and each task's own rows.

    kind: `descriptions` or `eval_descriptions`, read only where the task input is text. Embeddings that the
    hypernetwork has already are taken from there, in float16: reading tens of thousands of texts takes minutes.
    """
    if hyperlora.config.task_input != "text":
        ids = torch.arange(len(tasks))
        one_hot = hyperlora.config.task_input == "one_hot"
        return torch.eye(len(tasks)) if one_hot else ids, [[i] for i in ids.tolist()]
    texts = [getattr(task, kind) for task in tasks]
    ends = list(itertools.accumulate(map(len, texts)))
    flat = [text for part in texts for text in part]
    known = flat == hyperlora.descriptions
    inputs = hyperlora.embeddings.float() if known else hyperlora.embedder.embed(flat)
    return inputs, [list(range(e - len(p), e)) for p, e in zip(texts, ends, strict=True)]


def save(hyperlora: HyperLoRA, folder: Path) -> None:
    """Write each of the folder's files whole or not at all; `UserError` where that fails."""
    with writing(folder, "free some space, then resume"):
        hyperlora.save_pretrained(folder)
