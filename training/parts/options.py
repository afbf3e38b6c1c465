"""Options of a stage: a dataclass whose fields become the command line, with a file of values where one is named."""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers import HfArgumentParser

from hyperlora.errors import UserError, first_line
from hyperlora.text import command_line, open_streams

T = TypeVar("T")
MOST = {int: 2**31 - 1, float: 1e9}  # where an option says no other: what NumPy, PyTorch and a C integer all take


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Any:
    """A dataclass field with its help text; required on the command line where it has no default.

    least, most: the smallest and the largest number that `parse` takes, `most` being at most `MOST`. above: what the
    number must be greater than.
    """
    return dataclasses.field(default=default, metadata={"help": help, "least": least, "above": above, "most": most})


class _Parser(HfArgumentParser):
    """Gives all of a field's metadata to argparse, which knows no bounds."""

    def add_argument(self, *names, least=None, above=None, most=None, **kwargs):
        return super().add_argument(*names, **kwargs)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Each option with its default, below the module's docstring as it is written."""


def parse(kind: type[T], argv: list[str] | None = None, description: str | None = None) -> T:
    """The command line -> an instance of the dataclass `kind`. `--config FILE` (JSON or YAML) sets other defaults.

    Raises `UserError` for a file that cannot be read, an option that there is not, a number out of its bounds, or text
    that is not UTF-8.
    """
    argv = command_line(argv)
    module = getattr(sys.modules["__main__"], "__spec__", None)  # its file's name alone would start nothing
    program = f"python -m {module.name.removesuffix('.__main__')}" if module else None
    parser = _Parser(kind, prog=program, description=description, formatter_class=_Help, allow_abbrev=False)
    parser.add_argument("--config", help="JSON or YAML file of option: value; the command line wins over it")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    if path := first.parse_known_args(argv)[0].config:
        values = _read(Path(path))
        unknown = set(values) - {field.name for field in dataclasses.fields(kind)}
        if unknown:
            raise UserError(f"{path} holds the unknown option {min(unknown)!r}: see --help for those there are.")
        # as arguments in front of the real ones, so that the parser checks their types too
        argv = [part for key, value in values.items() if value is not None for part in _argument(key, value)] + argv
    namespace = parser.parse_args(command_line(argv))  # what a file says, too
    for field in dataclasses.fields(kind):
        _check(field, getattr(namespace, field.name))
    return kind(**{field.name: getattr(namespace, field.name) for field in dataclasses.fields(kind)})


def _check(field: dataclasses.Field, value: Any) -> None:
    """`UserError` for a number that is infinite, no number (NaN) or out of its option's bounds."""
    least, above, most = (field.metadata.get(bound) for bound in ("least", "above", "most"))
    wanted = None
    if type(value) not in MOST:
        return
    most = MOST[type(value)] if most is None else most
    least = -MOST[type(value)] if least is None and above is None else least
    if isinstance(value, float) and not math.isfinite(value):
        wanted = "a finite number"
    elif least is not None and value < least:
        wanted = f"at least {least}"
    elif above is not None and value <= above:
        wanted = f"above {above}"
    elif most is not None and value > most:
        wanted = f"at most {most}"
    if wanted:
        raise UserError(f"{field.name} is {value}, but must be {wanted}.")


def _argument(key: str, value: Any) -> list[str]:
    return [f"--{key}", *map(str, value)] if isinstance(value, list) else [f"--{key}={value}"]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a readable JSON or YAML file ({first_line(error)}).") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} must hold option: value pairs.")
    return values


def run(main) -> None:
    """Call a stage's `main`; a UserError ends the program with its sentence instead of a traceback."""
    open_streams()
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
