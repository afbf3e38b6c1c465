"""Options of a stage: a dataclass whose fields become the command line, with a file of values where one is named."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers import HfArgumentParser

from hyperlora.errors import UserError

T = TypeVar("T")


def option(default: Any = dataclasses.MISSING, help: str = "") -> Any:
    """A dataclass field with its help text; required on the command line where it has no default."""
    return dataclasses.field(default=default, metadata={"help": help})


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Each option with its default, below the module's docstring as it is written."""


def parse(kind: type[T], argv: list[str] | None = None, description: str | None = None) -> T:
    """The command line -> an instance of the dataclass `kind`. `--config FILE` (JSON or YAML) sets other defaults."""
    argv = sys.argv[1:] if argv is None else argv
    module = getattr(sys.modules["__main__"], "__spec__", None)  # its file's name alone would start nothing
    program = f"python -m {module.name.removesuffix('.__main__')}" if module else None
    parser = HfArgumentParser(kind, prog=program, description=description, formatter_class=_Help, allow_abbrev=False)
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
    namespace = parser.parse_args(argv)
    return kind(**{field.name: getattr(namespace, field.name) for field in dataclasses.fields(kind)})


def _argument(key: str, value: Any) -> list[str]:
    return [f"--{key}", *map(str, value)] if isinstance(value, list) else [f"--{key}={value}"]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a readable JSON or YAML file ({str(error).splitlines()[0]}).") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} must hold option: value pairs.")
    return values


def run(main) -> None:
    """Call a stage's `main`; a UserError ends the program with its sentence instead of a traceback."""
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
