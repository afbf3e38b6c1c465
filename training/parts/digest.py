"""Whether inputs are what they were: a checksum of files and folders by their content, wherever they lie."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hyperlora.base import origin
from hyperlora.errors import UserError

PIECE = 2**20
PIECES = 64  # of a larger file so many are read, evenly spread: a base that was trained again has other bytes in each


def digest(*paths: str | Path) -> str:
    """Eight hex digits: a CRC-32 of the files, or of those in the folders with their names there, in their order.

    Left out are what a stage resumes from (`checkpoints`) and hidden files. Raises UserError where there is none.
    """
    found = 0
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = file.relative_to(path) if path.is_dir() else Path(file.name)
            if file.is_dir() or any(part == "checkpoints" or part.startswith(".") for part in name.parts):
                continue
            found = zlib.crc32(str(name).encode(), found)
            try:
                with file.open("rb") as opened:
                    size = file.stat().st_size
                    found = zlib.crc32(str(size).encode(), found)
                    starts = range(0, size, PIECE)
                    if len(starts) > PIECES:
                        starts = [i * (size - PIECE) // (PIECES - 1) for i in range(PIECES)]
                    for start in starts:
                        opened.seek(start)
                        found = zlib.crc32(opened.read(PIECE), found)
            except OSError as error:
                raise UserError(f"{file} cannot be read ({error.strerror}).") from None
    return f"{found:08x}"


def base_digest(model: PreTrainedModel) -> str:
    """Of a base model's files, or its id and commit on the Hub."""
    name, revision = origin(model)
    if name is not None and Path(name).is_file():  # GGUF
        return digest(name)
    if name is None or not Path(name).is_dir():
        return f"{name}@{revision}"
    return digest(*(path for end in ("json", "jinja", "safetensors") for path in sorted(Path(name).glob(f"*.{end}"))))


def value_digest(value: object) -> str:
    """Of what JSON can hold."""
    return f"{zlib.crc32(json.dumps(value).encode()):08x}"


def tensor_digest(tensors: Iterable[Tensor]) -> str:
    """Of the values of tensors on any device, in their order."""
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.detach().cpu().flatten().view(torch.uint8).numpy(), found)
    return f"{found:08x}"
