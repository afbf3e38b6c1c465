"""Builds of a model in stages, each done once: a killed build goes on where it was."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hyperlora.config import read_json
from hyperlora.errors import UserError
from hyperlora.files import write_atomic

LOG = "stages.json"


def check_stage(stages: Mapping[str, Callable[[], None]], until: str) -> None:
    """`UserError` where there is no stage of that name."""
    if until not in stages:
        raise UserError(f"There is no stage {until!r}; there are {', '.join(stages)}.")


def read_stages(work: Path) -> dict[str, dict]:
    """The stages that were begun in that folder, each with what shaped it and, if it is done, its minutes."""
    return read_json(work / LOG) if (work / LOG).exists() else {}


def run_stages(
    work: Path,
    stages: Mapping[str, Callable[[], None]],
    until: str,
    given: Mapping[str, Any],
    shaped_by: Mapping[str, tuple[str, ...]],
    data: dict[str, Any],
) -> None:
    """Run the stages in their order up to `until`; WORK/stages.json says which are done, and in how many minutes.

    given: the options by their names, and what the folders hold that they name. shaped_by: stage -> those of them that
    it depends on, and all that follow it. data: what all depend on, by its name.
    Raises `UserError` where a stage that was begun had others.
    """
    log = work / LOG
    done, shaped = read_stages(work), dict(data)
    for name, stage in stages.items():
        shaped |= {option: given[option] for option in shaped_by.get(name, ())}
        entry = done.get(name, {})
        _check_same(work, name, entry.get("shaped by", {}), shaped)
        if "minutes" not in entry:
            print(f"Stage {name}", flush=True)
            started = time.perf_counter()
            done[name] = {"shaped by": dict(shaped)}  # what is begun is not gone on with otherwise either
            write_atomic(log, (json.dumps(done, indent=1) + "\n").encode())
            stage()
            done[name]["minutes"] = round((time.perf_counter() - started) / 60, 1)
            write_atomic(log, (json.dumps(done, indent=1) + "\n").encode())
        if name == until:
            break


def _check_same(work: Path, stage: str, before: dict, now: dict) -> None:
    """`UserError` where a stage that is done was another one's: what follows would be built on it."""
    for name in before:
        if before[name] != now.get(name):
            raise UserError(
                f"{work} has the stage {stage} with {name} {before[name]!r}, not {now.get(name)!r}: go on with the "
                "same, or take another --output."
            )
