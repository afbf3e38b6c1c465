"""A folder of plain LoRAs with an index of the tasks that each was trained on, and their elementwise average."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hyperlora.config import read_json
from hyperlora.errors import UserError
from hyperlora.files import write_atomic, writing
from hyperlora.lora import Adapter
from training.tasks import NAME, Task

INDEX, SETTINGS = "index.json", "settings.json"
MAX_INDEX_BYTES = 64 * 2**20
TARGET_MODULES = ["q_proj", "v_proj"]  # Figure 7


def read_index(folder: str | Path) -> dict[str, list[str]]:
    """index.json of a folder of LoRAs: name -> the tasks it was trained on; empty where there is none.

    Raises UserError, naming the file, where it is damaged, of another form, or a name is no plain folder's.
    """
    path = Path(folder) / INDEX
    index = read_json(path, MAX_INDEX_BYTES) if path.exists() else {}
    good = isinstance(index, dict) and all(
        re.fullmatch(NAME, name) and isinstance(of, list) and all(isinstance(task, str) for task in of)
        for name, of in index.items()
    )
    if not good:
        raise UserError(
            f"{path} must hold an object of LoRA: [names of its tasks], a LoRA's name of letters, digits, "
            '"_", "-" and ".": mend it, or train the LoRAs again.'
        )
    return index


def read_settings(folder: str | Path) -> dict[str, dict]:
    """settings.json of a folder of LoRAs: name -> how it was trained, of those for which that is known."""
    path = Path(folder) / SETTINGS
    settings = read_json(path, MAX_INDEX_BYTES) if path.exists() else {}
    if not isinstance(settings, dict) or not all(isinstance(of, dict) for of in settings.values()):
        raise UserError(f"{path} must hold an object of LoRA: its settings; mend it, or remove it.")
    return settings


def save_adapters(
    folder: str | Path,
    adapters: Mapping[str, Adapter],
    groups: Mapping[str, Sequence[Task]],
    settings: Mapping[str, dict] | None = None,
) -> None:
    """Each adapter as the PEFT folder FOLDER/NAME, and index.json: name -> the tasks it was trained on.

    settings: how each was trained, for settings.json. Adapters that the folder's index names already stay. `UserError`
    where writing fails; the index names whole ones.
    """
    folder = Path(folder)
    index, known = read_index(folder), read_settings(folder)
    with writing(folder, "free some space, or choose another output folder"):
        for name, adapter in adapters.items():
            new = not (folder / name).exists()
            try:
                adapter.save_pretrained(folder / name)
            except BaseException:
                if new:
                    shutil.rmtree(folder / name, ignore_errors=True)
                raise
            index[name] = [task.name for task in groups.get(name, [])]
            known.pop(name, None)
        known |= settings or {}
        if known or (folder / SETTINGS).exists():
            write_atomic(folder / SETTINGS, (json.dumps(known, indent=1, ensure_ascii=False) + "\n").encode())
        write_atomic(folder / INDEX, (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode())


def load_adapters(folder: str | Path) -> dict[str, Adapter]:
    """What `save_adapters` wrote: name -> adapter, in the order of the index. UserError where there is no index."""
    if not (Path(folder) / INDEX).exists():
        raise UserError(f"{folder} holds no {INDEX}: train its LoRAs first.")
    return {name: Adapter.from_pretrained(Path(folder) / name) for name in read_index(folder)}


def average(adapters: Sequence[Adapter]) -> Adapter:
    """The average LoRA of the paper's Section 4: the elementwise mean of A and of B, not of their products."""
    if not adapters:
        raise UserError("There are no adapters to average.")
    first = adapters[0]
    if any(form(adapter) != form(first) for adapter in adapters):
        raise UserError("Only adapters of the same alpha, rank, prompt_style, modules and sizes can be averaged.")
    means = {
        module: tuple(torch.stack([a.weights[module][side] for a in adapters]).mean(0) for side in (0, 1))
        for module in first.weights
    }
    return Adapter(
        means, first.alpha, first.use_rslora, first.lora_dropout,
        base_model=first.base_model, base_revision=first.base_revision, prompt_style=first.prompt_style,
    )  # fmt: skip


def form(adapter: Adapter) -> tuple:
    """What adapters must have in common to be averaged."""
    sizes = {module: (tuple(A.shape), tuple(B.shape)) for module, (A, B) in adapter.weights.items()}
    return adapter.alpha, adapter.use_rslora, adapter.prompt_style, sizes
