"""Downloads from the Hugging Face Hub: what is here already, how much is missing, whether it fits, and its progress."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperlora.config import read_json
from hyperlora.errors import UserError
from hyperlora.files import resolve_folder, why_not_fetched

if TYPE_CHECKING:
    from tqdm import tqdm

TIMEOUT = 5.0  # seconds without an answer after which the Hub counts as out of reach
ROOM = 1e9  # bytes that a download leaves free on the disk
MAX_INDEX = 2**26  # bytes of a list of weights
Report = Callable[[float], None]


class Unreachable(UserError):
    """Something is not here, and the Hub cannot be asked for it."""


class Cancelled(Exception):
    """Whoever waited for a download does not want it any more."""


@dataclass(frozen=True)
class Repo:
    """A model on the Hub: the files that match `patterns`, at `revision` (None: the newest)."""

    name: str
    patterns: tuple[str, ...]
    revision: str | None = None
    weights: str = "model.safetensors"
    """The file, or the one whose .index.json names its parts, without which a copy is not whole."""


def cached(repo: Repo) -> Path | None:
    """The folder of the whole copy in the cache, named by its commit; None where there is none."""
    try:
        folder = resolve_folder(repo.name, repo.revision, list(repo.patterns), local_files_only=True)
    except UserError:
        return None
    # Not every download leaves a list of the repository's files behind: without it a part would pass for the whole.
    index, parts = folder / f"{repo.weights}.index.json", [repo.weights]
    if index.is_file():
        content = read_json(index, MAX_INDEX)
        if isinstance(content, dict) and isinstance(content.get("weight_map"), dict):
            parts = list(content["weight_map"].values())
    return folder if all((folder / str(part)).is_file() for part in parts) else None


def missing(repo: Repo) -> tuple[float, str]:
    """The bytes that a download would bring, and the commit that it would bring them from.

    Raises `UserError` where it cannot be had, or not by this user: `Unreachable` where the Hub does not answer.
    """
    from huggingface_hub import HfApi, errors, is_offline_mode, try_to_load_from_cache
    from huggingface_hub.utils import filter_repo_objects

    if is_offline_mode():
        raise Unreachable(
            f"{repo.name} is not whole in the cache, and HF_HUB_OFFLINE forbids a download: unset it, or give a folder."
        )
    api = HfApi()
    try:
        info = api.model_info(repo.name, revision=repo.revision, files_metadata=True, timeout=TIMEOUT)
        if info.gated:  # the list of its files is public all the same
            api.auth_check(repo.name)
    except Exception as error:  # whatever a network can do
        kind = UserError if isinstance(error, errors.HfHubHTTPError) else Unreachable
        raise kind(why_not_fetched(error, repo.name, repo.revision)) from error
    files = filter_repo_objects(
        info.siblings or [], allow_patterns=list(repo.patterns), key=lambda file: file.rfilename
    )
    sizes = {file.rfilename: file.size or 0 for file in files}
    if not sizes.keys() & {repo.weights, f"{repo.weights}.index.json"}:
        raise UserError(f"{repo.name} has no {repo.weights} on the Hub: it is not the kind of model it should be.")
    here = {name for name in sizes if isinstance(try_to_load_from_cache(repo.name, name, revision=info.sha), str)}
    return float(sum(size for name, size in sizes.items() if name not in here)), info.sha


def download(repos: Iterable[Repo], report: Report) -> None:
    """Fetch what is missing of each; `UserError` says why it failed.

    `report` hears of the bytes that have come, of all of them together and from several threads. What it raises must be
    `Cancelled`, which ends the download; files that are whole by then stay.
    """
    before = furthest = 0.0

    def add(done: float) -> None:
        nonlocal furthest
        furthest = max(furthest, before + done)
        report(furthest)

    for repo in repos:
        bar = silent_bar(add)
        try:
            resolve_folder(repo.name, repo.revision, list(repo.patterns), bar=bar)
        except UserError as error:
            if bar.cancelled:
                raise Cancelled from error
            raise
        before = furthest


@contextmanager
def on_terminal(size: float) -> Iterator[Report]:
    """A bar on standard error, where that is a terminal; gives what tells it of the bytes so far."""
    from tqdm import tqdm

    with tqdm(total=size, unit="B", unit_scale=True, desc="Download", disable=None) as bar:
        yield lambda done: bar.update(done - bar.n)


def check_disk(size: float) -> float:
    """The bytes that are free where the cache lies; `UserError` where a download of `size` bytes does not fit."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if size and free < size + ROOM:
        raise UserError(
            f"A download of {gigabytes(size)} does not fit: {cache} has {gigabytes(free)} free. Make room, or set "
            "HF_HOME to a folder on another disk."
        )
    return float(free)


def gigabytes(size: float) -> str:
    """Bytes for people."""
    if size < 1e9:
        return f"{size / 1e6:.0f} MB"
    return f"{size / 1e9:.1f} GB" if size < 1e11 else f"{size / 1e9:.0f} GB"


def silent_bar(report: Report) -> type["tqdm"]:
    """A progress bar that draws nothing and tells `report` how far the bars of bytes are: the furthest counts, since
    the library has one for what came through the network and one for what is on the disk."""
    from tqdm import tqdm

    class Bar(tqdm):
        cancelled = False  # all bars of this download
        furthest = 0.0

        def __init__(self, *args, **options):
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})
            self.done, self.counts = 0.0, options.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            self.done += n or 0
            if not self.counts:
                return
            Bar.furthest = max(Bar.furthest, self.done)
            try:
                report(Bar.furthest)
            except Cancelled:
                Bar.cancelled = True
                _abort_xet()
                raise

    return Bar


def _abort_xet() -> None:
    """End what the Xet library fetches: it runs beside Python, and need not hear of an exception in a progress bar."""
    try:
        from huggingface_hub.utils._xet import abort_xet_session
    except ImportError:
        return
    abort_xet_session()
