"""A stage's options: numbers out of their bounds are refused in a sentence, on the command line and in a file."""

import importlib
import os
from dataclasses import dataclass, fields

import pytest

from hyperlora.errors import UserError
from training.parts.options import option, parse

STAGES = [
    "analysis", "benchmarks", "descriptions", "distill", "evaluate", "lora", "mini.__main__", "plan", "recon",
    "reproduce", "sft", "smollm2.__main__", "smollm2.evaluation", "tasks",
]  # fmt: skip


@dataclass
class Bounded:
    rows: int = option(4, "rows", least=1)
    share: float = option(0.5, "a share", above=0, most=1)
    limit: int | None = option(None, "or none", least=1)
    free: int = option(0, "any")
    wide: float = option(0.0, "any")
    name: str | None = option(None, "a text")
    more: list[str] | None = option(None, "texts")


@dataclass
class Named:
    name: str = option("x", "a name")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--rows", "0"], "rows is 0, but must be at least 1."),
        (["--share", "0"], "share is 0.0, but must be above 0."),
        (["--share", "1.5"], "share is 1.5, but must be at most 1."),
        (["--share", "nan"], "share is nan, but must be a finite number."),
        (["--limit", "-1"], "limit is -1, but must be at least 1."),
        (["--rows", "3000000000"], "rows is 3000000000, but must be at most 2147483647."),
        (["--free", "-3000000000"], "free is -3000000000, but must be at least -2147483647."),
        (["--wide", "2e9"], "wide is 2000000000.0, but must be at most 1000000000.0."),
    ],
)
def test_a_number_out_of_its_bounds_is_refused(line, sentence):
    with pytest.raises(UserError) as error:
        parse(Bounded, line)
    assert str(error.value) == sentence


def test_numbers_within_their_bounds_are_taken():
    assert parse(Bounded, ["--rows", "1", "--share", "1"]) == Bounded(1, 1.0, None)


@pytest.mark.parametrize("text", ['name: "Sort \\ud83d"', 'name: "\\udce9"', 'name: "\\udfff x"'])
def test_half_a_character_is_refused_on_the_line_and_in_a_file(tmp_path, text):
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(UserError, match="which is half a character or a byte that is not UTF-8"):
        parse(Named, ["--config", str(tmp_path / "file.yaml")])
    with pytest.raises(UserError, match=r"The command line holds '.udce9'"):
        parse(Named, ["--name", os.fsdecode(b"caf\xe9")])
    (tmp_path / "file.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(UserError, match="is not a readable JSON or YAML file"):
        parse(Named, ["--config", str(tmp_path / "file.yaml")])


def test_a_file_is_held_to_the_bounds_too(tmp_path):
    (tmp_path / "file.yaml").write_text("rows: 0\n")
    with pytest.raises(UserError, match="rows is 0"):
        parse(Bounded, ["--config", str(tmp_path / "file.yaml")])
    assert parse(Bounded, ["--config", str(tmp_path / "file.yaml"), "--rows", "2"]).rows == 2


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_takes_a_number_below_what_it_can_use(stage):
    """Every number that has a bound, one below it."""
    kind = importlib.import_module(f"training.{stage}").Options
    needed = [part for field in fields(kind) if field.type is str for part in (f"--{field.name}", "x")]
    parse(kind, needed)  # the defaults are within the bounds
    below = {f.name: f.metadata["least"] - 1 for f in fields(kind) if f.metadata["least"] is not None}
    below |= {f.name: f.metadata["above"] for f in fields(kind) if f.metadata["above"] is not None}
    assert below
    for name, value in below.items():
        with pytest.raises(UserError, match=f"^{name} is {value}.*, but must be"):
            parse(kind, [*needed, f"--{name}={value}"])


@pytest.mark.parametrize("value", [2**31, 2**32, 2**45, 2**64, 10**30])
@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_takes_a_number_that_would_overflow(stage, value):
    kind = importlib.import_module(f"training.{stage}").Options
    needed = [part for field in fields(kind) if field.type is str for part in (f"--{field.name}", "x")]
    for field in fields(kind):
        if field.type in (int, float, int | None):
            with pytest.raises(UserError, match=f"^{field.name} is .*, but must be at most"):
                parse(kind, [*needed, f"--{field.name}={value}"])
