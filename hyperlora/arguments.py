"""The arguments that name what to load, on the page and the command line alike, and the pipeline that they open."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from hyperlora import hub, smollm2
from hyperlora.choice import (
    BITS,
    DTYPES,
    Choice,
    Pair,
    best_preset,
    consider,
    hyperlora_config,
    mini,
    small,
)
from hyperlora.devices import device_named
from hyperlora.errors import UserError
from hyperlora.hub import gigabytes
from hyperlora.presets import PRESETS, SMALL_PRESET, get_preset

if TYPE_CHECKING:  # torch takes seconds to import, and the bundled model's page opens before that
    from hyperlora.pipe import Pipeline

ASK = 200e6  # bytes: a larger download is asked for
FORMS = ("peft", "gguf", "merged", "merged-gguf")  # that `hyperlora.export` writes


def add_options(parser: argparse.ArgumentParser) -> None:
    """--preset, --base, --hyperlora, --device, --dtype, --quantize, --embedder_device, --yes."""
    group = parser.add_argument_group("models (with none named: the best preset that this machine can run)")
    group.add_argument("--preset", metavar="NAME", help=f"a base model with its hypernetwork: {', '.join(PRESETS)}")
    group.add_argument("--base", metavar="MODEL", help="a base model: a folder, a GGUF file, a Hub id, or ID@REVISION")
    group.add_argument("--hyperlora", metavar="MODEL", help="a hypernetwork for it, named in the same way")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto is the best for the model")
    group.add_argument("--dtype", choices=DTYPES, help="of the base model (default: the best that fits)")
    group.add_argument("--quantize", choices=BITS, help="the base model's linears in few bits (default: if need be)")
    group.add_argument("--embedder_device", default="cpu", help="where descriptions are read (default: cpu)")
    group.add_argument("--yes", action="store_true", help="download without asking, however much it is")


def named(args: argparse.Namespace) -> bool:
    """Whether the options say what to load, so that nothing else will do."""
    return bool(args.preset or args.base or args.hyperlora)


def choose(args: argparse.Namespace) -> Choice:
    """What the options name, or the best preset. Raises `UserError` where what they name cannot be."""
    options = (args.device, args.dtype, args.quantize)
    if named(args):
        choice = consider(named_pair(args.preset, args.base, args.hyperlora), *options)
    else:
        choice = best_preset(*options)
    return replace(choice, embedder_device=device_named(args.embedder_device).name)


def named_pair(preset: str | None, base: str | None, hyperlora: str | None) -> Pair:
    """What --preset, --base and --hyperlora mean together. Raises `UserError` where something is missing."""
    (base, base_revision), (hyperlora, hyperlora_revision) = (
        name_and_revision("base", base),
        name_and_revision("hyperlora", hyperlora),
    )
    chosen = get_preset(preset) if preset else None
    if chosen is None and hyperlora is None:
        chosen = next((preset for preset in PRESETS.values() if preset.base == base), None)
        if chosen is None:
            raise UserError(
                f"There is no hypernetwork for {base}: train one (python -m training.sft --base {base} --tasks TASKS "
                f"--output DIR; python -m training.plan --base {base} says what that takes) and name it with "
                "--hyperlora, or take a preset; a copy of a preset's base goes with --preset beside --base."
            )
        base = None if base_revision is None else base
    elif chosen is None and base is None:
        from hyperlora.interop import text_to_lora

        named = Pair(hyperlora=hyperlora, hyperlora_revision=hyperlora_revision)
        if named.native is None:
            base, _ = text_to_lora.names_of(hyperlora)
        elif config := hyperlora_config(named):
            base, base_revision = config.base_model, config.base_revision
        if base is None:
            raise UserError(f"{hyperlora} does not say which base model it is for: name that with --base.")
        if (base, base_revision) == (smollm2.NAME, None):  # the package's, over which it was trained
            chosen, base = get_preset(SMALL_PRESET), None
    return Pair(chosen, base, base_revision, hyperlora, hyperlora_revision)


def name_and_revision(option: str, value: str | None) -> tuple[str | None, str | None]:
    """ID@REVISION -> both; a folder's name is taken as it is. `UserError` where there is none."""
    name, revision = value, ""
    if value is not None and "@" in value and not os.path.exists(os.path.expanduser(value)):
        name, _, revision = value.rpartition("@")
    if name is not None and not name.strip():
        raise UserError(f"--{option} is {value!r}, which names no model: give a folder or a Hub id.")
    return name, revision or None


def open_pipeline(
    args: argparse.Namespace,
    ask: Callable[[str], None],
    say: Callable[[str], None],
    report: Callable[[float, float], None] = lambda done, size: None,
    choice: Choice | None = None,
) -> "Pipeline":
    """Choose (unless `choice` says what), download, load.

    `ask` is given a sentence on a large download and returns where it is allowed; else it raises `UserError`, or
    `hub.Cancelled` as `report` may: then it is a smaller model. `report` hears of the bytes so far and in all, 0 first.
    `say` is given each line for people. Whatever fails is a smaller model's turn where nothing was named, and a
    `UserError` else.
    """
    try:
        choice = choice or choose(args)
        return _open(choice, args, ask, say, report)
    except hub.Cancelled:
        reason = f"{choice.pair.title} was not downloaded."
    except UserError as error:
        if named(args):
            raise
        reason = str(error)
    if choice is None or choice.pair.preset not in (PRESETS[SMALL_PRESET], PRESETS["mini"]):
        choice = small(reason)
        try:
            return _open(choice, args, ask, say, report)
        except hub.Cancelled:
            reason = f"{choice.pair.title} was not downloaded."
        except UserError as error:
            reason = str(error)
    return _open(mini(reason), args, ask, say, report)


def _open(
    choice: Choice,
    args: argparse.Namespace,
    ask: Callable[[str], None],
    say: Callable[[str], None],
    report: Callable[[float, float], None],
) -> "Pipeline":
    """Download what was chosen, and load it."""
    if choice.why:
        say(choice.why)
    if choice.size > ASK and not args.yes:
        free = gigabytes(hub.check_disk(choice.size))
        ask(f"{choice.pair.title} needs a download of {gigabytes(choice.size)}; {free} of the disk are free.")
    if choice.repos or choice.package:
        with hub.on_terminal(choice.size) as draw:

            def both(done: float) -> None:
                draw(done)
                report(done, choice.size)

            both(0.0)
            choice.download(both)
            both(choice.size)
    return choice.load()
