"""A library of LoRAs of one base as one file, mapped into memory and read in pieces: 489 of Mistral-7B's are 6.7 GB.

The file is a safetensors file: "MODULE.A" [layers, n, r, d_in] and "MODULE.B" [layers, n, r, d_out], the latter being
Bᵀ, both float32 and at one scale, so that one layer of all n LoRAs lies together.
"""

import itertools
import json
import math
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hyperlora.config import lora_scale
from hyperlora.errors import UserError
from hyperlora.files import atomic_file, open_safetensors
from hyperlora.hypernetwork import Factors
from hyperlora.lora import CONFIG_FILE, WEIGHTS_FILE, Adapter
from training.parts.adapters import INDEX, read_index

FLOAT = 4  # bytes


class Library:
    """The A and B of n LoRAs; no more of them is read than `read` is asked for."""

    def __init__(self, path: str | Path):
        path = Path(path)
        with open_safetensors(path) as file:
            facts = (file.metadata() or {}).get("library")
            if facts is None:
                raise UserError(f"{path} is no library of LoRAs: pack them again.")
            facts = json.loads(facts)
            # views of the mapped file: their pages come off the disk when they are touched
            self._weights = {m: (file.get_tensor(f"{m}.A"), file.get_tensor(f"{m}.B")) for m in facts["modules"]}
        self.names: list[str] = facts["names"]
        self.tasks: list[str] = facts["tasks"]  # the one task of each LoRA
        self.alpha: float = facts["alpha"]
        self.use_rslora: bool = facts["use_rslora"]
        self.base_model: str | None = facts["base_model"]
        self.base_revision: str | None = facts["base_revision"]
        self.target_modules = {m: (A.shape[-1], B.shape[-1]) for m, (A, B) in self._weights.items()}
        self.num_layers, _, self.rank, _ = next(iter(self._weights.values()))[0].shape

    def __len__(self) -> int:
        return len(self.names)

    @property
    def scale(self) -> float:
        """ΔW = scale · B A, for every LoRA of the library."""
        return lora_scale(self.alpha, self.rank, self.use_rslora)

    def to(self, device: str | torch.device) -> "Library":
        """Hold all weights in that device's memory from now on; nothing happens on the CPU."""
        self._weights = {m: (A.to(device), B.to(device)) for m, (A, B) in self._weights.items()}
        return self

    def read(self, module: str, layers: slice, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A [n, layers, r, d_in] and B [n, layers, d_out, r] of some LoRAs, float32; `rows` are their numbers."""
        neighbours = range(rows[0], rows[0] + len(rows))
        part = slice(neighbours.start, neighbours.stop) if list(rows) == list(neighbours) else list(rows)  # no copy
        A, B = (side[layers][:, part].transpose(0, 1) for side in self._weights[module])
        return A, B.mT

    def _each_layer(self, module: str) -> Iterator[tuple[int, Tensor, Tensor]]:
        for layer in range(self.num_layers):
            A, B = self.read(module, slice(layer, layer + 1), range(len(self)))
            yield layer, A[:, 0], B[:, 0]

    def checksum(self) -> int:
        """CRC-32 of one layer of one module: other LoRAs have another, whatever their names."""
        found = 0
        for side in self.read(next(iter(self.target_modules)), slice(0, 1), range(len(self))):
            found = zlib.crc32(side.cpu().contiguous().numpy(), found)
        return found

    def statistics(self, correction: int = 0) -> tuple[Factors, Factors]:
        """Mean and standard deviation of each weight entry over the LoRAs (App. D), read layer by layer.

        Both: module -> (A [layers, r, d_in], B [layers, d_out, r]). An entry that never varies has deviation 0.
        correction: what is taken from the number of LoRAs that squares are divided by. UserError where nothing is left.
        """
        if len(self) <= correction:
            raise UserError(f"The deviation of a sample needs more than {len(self)} LoRAs: leave sample_deviation out.")
        means, deviations = {}, {}
        for module, (d_in, d_out) in self.target_modules.items():
            sizes = (self.num_layers, self.rank, d_in), (self.num_layers, d_out, self.rank)
            means[module], deviations[module] = tuple(map(torch.empty, sizes)), tuple(map(torch.empty, sizes))
            for layer, *sides in self._each_layer(module):
                for i, side in enumerate(sides):
                    means[module][i][layer] = side.mean(0)
                    deviations[module][i][layer] = side.var(0, correction=correction).sqrt()
        return means, deviations

    def delta_norms(self) -> Tensor:
        """Root mean square over the LoRAs of the Frobenius norm of each ΔW: [modules, layers]."""
        norms = torch.zeros(len(self.target_modules), self.num_layers)
        for i, module in enumerate(self.target_modules):
            for layer, A, B in self._each_layer(module):
                squares = ((B.mT @ B) * (A @ A.mT)).sum((-1, -2))  # |BA|² = tr(BᵀB AAᵀ)
                norms[i, layer] = self.scale * squares.mean().clamp_min(0).sqrt()
        return norms


def pack(
    folder: str | Path,
    path: str | Path,
    tasks: Collection[str] | None = None,
    alpha: float = 16.0,
    use_rslora: bool = True,
) -> Library:
    """The PEFT LoRAs in FOLDER as one file at `path`, whose scale is that of `alpha` and `use_rslora`.

    Each LoRA is of one task: itself where the index gives none; those of several (multi-task, average) are left out,
    and those whose task is not in `tasks`, where given. A file that holds just these already is kept. Raises
    `UserError`, naming the LoRA, where one is damaged, of another shape or of another base.
    """
    folder, path = Path(folder), Path(path)
    found = {name: of[0] for name, of in _index(folder).items() if tasks is None or of[0] in tasks}
    if not found:
        raise UserError(f"{folder} holds no LoRA of one task" + (" of these." if tasks is not None else "."))
    files = [(folder / name / WEIGHTS_FILE, folder / name / CONFIG_FILE) for name in found]
    stamps = [[(f.stat().st_size, f.stat().st_mtime_ns) if f.exists() else None for f in pair] for pair in files]
    source = json.dumps([list(found.items()), stamps, alpha, use_rslora])
    if path.exists():
        with open_safetensors(path) as file:
            if (file.metadata() or {}).get("source") == source:
                return Library(path)
    write_library(path, found, (_load(folder, name) for name in found), alpha, use_rslora, source)
    return Library(path)


def write_library(
    path: str | Path,
    tasks: Mapping[str, str],
    adapters: Iterable[Adapter],
    alpha: float = 16.0,
    use_rslora: bool = True,
    source: str = "",
) -> None:
    """Write the LoRAs of `tasks` (name -> its task), in that order, one in memory at a time; whole or not at all.

    B takes up the difference between a LoRA's scale and the library's. `source` says which they are: `pack`'s.
    """
    path, adapters, names = Path(path), iter(adapters), list(tasks)
    first = next(adapters)
    scale = lora_scale(alpha, first.rank, use_rslora)
    header: dict[str, dict] = {}
    total = 0
    for module, (A, B) in first.weights.items():
        for side, size in (("A", A.shape[2]), ("B", B.shape[1])):
            shape, begin = [first.num_layers, len(names), first.rank, size], total
            total += FLOAT * math.prod(shape)
            header[f"{module}.{side}"] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, total]}
    facts = {"names": names, "tasks": list(tasks.values()), "alpha": alpha, "use_rslora": use_rslora}
    facts |= {"modules": list(first.weights), "base_model": first.base_model, "base_revision": first.base_revision}
    metadata = {"format": "pt", "library": json.dumps(facts), "source": source}
    text = json.dumps({"__metadata__": metadata} | header).encode()
    text += b" " * (-(8 + len(text)) % 64)  # so that the numbers lie where PyTorch puts its own, whatever the names
    try:
        with atomic_file(path) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for i, (name, adapter) in enumerate(zip(names, itertools.chain([first], adapters), strict=True)):
                _check_alike(name, adapter, names[0], first)
                for module, (A, B) in adapter.weights.items():
                    for side, value in (("A", A), ("B", B.mT * (adapter.scale / scale))):
                        start = 8 + len(text) + header[f"{module}.{side}"]["data_offsets"][0]
                        for layer, rows in enumerate(value.float().contiguous()):
                            file.seek(start + FLOAT * rows.numel() * (layer * len(names) + i))
                            file.write(rows.numpy())
    except OSError as error:
        raise UserError(f"{path} could not be written ({error}): it needs {total / 2**30:.2f} GiB.") from None


def _check_alike(name: str, adapter: Adapter, first_name: str, first: Adapter) -> None:
    for what, of in (("modules", lambda a: list(a.weights)), ("base", lambda a: a.base_model)):
        if of(adapter) != of(first):
            raise UserError(f"The LoRA {name} has the {what} {of(adapter)}, but {first_name} has {of(first)}.")
    if None not in (commits := (adapter.base_revision, first.base_revision)) and commits[0] != commits[1]:
        raise UserError(f"The LoRA {name} is of the base's revision {commits[0]}, but {first_name} of {commits[1]}.")
    for module, expected in first.weights.items():
        found, wanted = ([list(side.shape) for side in sides] for sides in (adapter.weights[module], expected))
        if found != wanted:
            raise UserError(f"The LoRA {name} has A and B of {found} for {module}, but {first_name} of {wanted}.")


def _load(folder: Path, name: str) -> Adapter:
    try:
        return Adapter.from_pretrained(folder / name)
    except UserError as error:
        raise UserError(f"The LoRA {name} cannot be used: {error}") from None


def _index(folder: Path) -> dict[str, list[str]]:
    """LoRA -> its tasks, those of several left out; without an index, every PEFT folder is its own task's."""
    index = read_index(folder)
    if not (folder / INDEX).exists():
        index = {path.parent.name: [] for path in sorted(folder.glob(f"*/{CONFIG_FILE}"))}
    return {name: of or [name] for name, of in index.items() if len(of) < 2}
