"""Folders here or on the Hub, safetensors read with their shapes checked first, and writes that are whole or absent."""

import errno
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from safetensors import SafetensorError, safe_open

from hyperlora.errors import UserError, first_line

if TYPE_CHECKING:  # the page reads its presets before torch is imported
    from torch import Tensor, nn

HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def resolve_folder(
    path_or_id: str | Path,
    revision: str | None,
    patterns: list[str],
    local_files_only: bool = False,
    bar: type | None = None,
) -> Path:
    """A local folder as it is; otherwise the Hub repository of that id, of which only `patterns` are downloaded.

    With `local_files_only`, or HF_HUB_OFFLINE=1, only what this machine's cache holds. `bar`: the class of a download's
    progress bars, where it is not the library's own. Raises `UserError` that says why there is neither and what to do.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    name = str(path_or_id)
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise UserError(f"There is no folder {name!r}.")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=local_files_only, tqdm_class=bar
            )
        )
    except Exception as error:  # whatever a network can do
        raise UserError(why_not_fetched(error, name, revision, local_files_only)) from error


def why_not_fetched(error: Exception, name: str, revision: str | None, local_files_only: bool = False) -> str:
    """Why a repository could not be fetched, and what to do, in a sentence."""
    from huggingface_hub import constants, errors, get_token

    login, token = "log in with `hf auth login`, or set HF_TOKEN", get_token() is not None
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        terms = f"{name} is gated: accept its terms on {constants.ENDPOINT}/{name}, then "
        return terms + ("try again with a token that may read it." if token else f"{login}.")
    if isinstance(error, errors.RepositoryNotFoundError) or (status in (401, 403) and not token):
        known = "your token may not read it" if token else f"{login} if it is private"
        return f"{name!r} is neither a folder here nor a repository on the Hub: check its name, or {known}."
    if status in (401, 403):
        return f"The Hub does not let your token read {name} (error {status}): {login} of an account that may."
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{name} has no revision {revision!r} on the Hub: leave the revision out, or take a branch or commit of it."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        held = "only partly" if isinstance(error, errors.IncompleteSnapshotError) else "not"
        where = f"{name!r} is no folder here and {held} in the cache ({constants.HF_HUB_CACHE})"
        if local_files_only:
            return f"{where}, and local_files_only forbids a download: leave that out, or give a folder."
        if constants.HF_HUB_OFFLINE:
            return f"{where}, and HF_HUB_OFFLINE forbids a download: unset it, or give a folder."
        error = error.__cause__ or error  # what the Hub, or the network, said
        if not isinstance(error, errors.HfHubHTTPError):
            return f"{where}, and the Hub cannot be reached: check the network and try again, or give a folder."
    if isinstance(error, errors.HfHubHTTPError):
        return f"The Hub cannot give {name} now (error {error.response.status_code}): try again in a while."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full: {name} does not fit into {constants.HF_HUB_CACHE}. Free some space and start again, "
            "where it stopped, or set HF_HOME to a folder on a larger disk."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"The cache {constants.HF_HUB_CACHE} cannot be written: set HF_HOME to a folder that can."
    return f"{name!r} is no folder here and could not be fetched from the Hub ({first_line(error)}): check the network."


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


def own_memory(module: "nn.Module") -> None:
    """Copy the weights out of the files that libraries map: these may change, and lie at offsets of their own."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, renamed at the end: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:  # as the umask says
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the whole new one."""
    with atomic_file(path) as file:
        file.write(data)


def cache_folder(name: str) -> Path:
    """Where in the user's cache, beside the Hub's, something of ours is kept; nothing is written yet."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "hyperlora" / name


def sha256_of(path: Path) -> str:
    """The digest of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tensors(tensors: Mapping[str, "Tensor"], about: object) -> str:
    """The digest of tensors of any float dtype, as float32, by name and shape, and of `about`, which JSON can hold."""
    digest = hashlib.sha256(json.dumps(about).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().cpu()
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.flatten().numpy())
    return digest.hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process or thread makes `path`; it waits until that is done. Its folder is made."""
    from huggingface_hub.utils import WeakFileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_name(f".{path.name}.lock")):
        yield


@contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """Inside, what fails to write (a full disk, no permission) raises `UserError` with the path and the advice."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError, safetensors its own
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path} could not be written ({reason}): {advice}.") from error


def check_writable(folder: Path, advice: str = "choose another output folder") -> None:
    """Make the folder. `UserError` where it cannot be made or written to: before hours of work, not after them."""
    with writing(folder, advice):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def safetensors_bytes(tensors: Mapping[str, "Tensor"], notes: Mapping[str, str] | None = None) -> bytes:
    """Tensors in the order of their names, and notes in the header's metadata: equal ones give equal bytes."""
    from safetensors.torch import save

    metadata = {"format": "pt"} | dict(notes or {})
    data = save({name: tensors[name].detach().contiguous().cpu() for name in sorted(tensors)}, metadata)
    if len(metadata) == 1:
        return data
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size]) | {"__metadata__": metadata}  # safetensors has it in an order of chance
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def check_finite(name: str, tensor: "Tensor", path: Path) -> None:
    """Refuse infinite values and NaN: they would only show as nonsense in an answer."""
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise UserError(f"{path} is damaged: {name} holds values that are not finite.")
