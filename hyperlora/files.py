"""Folders here or on the Hub, safetensors read with their shapes checked first, and writes that are whole or absent."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from safetensors import SafetensorError, safe_open

from hyperlora.errors import UserError

if TYPE_CHECKING:  # the page reads its presets before torch is imported
    from torch import Tensor

HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def resolve_folder(path_or_id: str | Path, revision: str | None, patterns: list[str]) -> Path:
    """A local folder as it is; otherwise the Hub repository of that id, of which only `patterns` are downloaded.

    Raises `UserError` where there is neither.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    name = str(path_or_id)
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise UserError(f"There is no folder {name!r}.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # no network, no such repository, no access: one sentence for all
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name!r} is neither a folder nor could it be fetched from the Hub ({reason}).") from error


@contextmanager
def open_safetensors(path: Path) -> Iterator[safe_open]:
    """`safe_open` for PyTorch, with `UserError` for a missing or damaged file."""
    if not path.is_file():
        raise UserError(f"{path} is missing.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: it is not a whole safetensors file.") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, renamed at the end: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the whole new one."""
    with atomic_file(path) as file:
        file.write(data)


def safetensors_bytes(tensors: Mapping[str, "Tensor"]) -> bytes:
    """Tensors in the order of their names, so that equal tensors give equal bytes."""
    from safetensors.torch import save

    return save({name: tensors[name].detach().contiguous().cpu() for name in sorted(tensors)}, {"format": "pt"})


def check_finite(name: str, tensor: "Tensor", path: Path) -> None:
    """Refuse infinite values and NaN: they would only show as nonsense in an answer."""
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise UserError(f"{path} is damaged: {name} holds values that are not finite.")
