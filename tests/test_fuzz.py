"""A few broken files for each reader, always the same; `make fuzz` takes two minutes of new ones for each."""

import warnings
from pathlib import Path

import pytest

from hyperlora.errors import UserError
from tests import fuzz


@pytest.fixture(autouse=True)
def _own_cache(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "FOUND", tmp_path / "found")


@pytest.mark.parametrize("name", fuzz.READERS)
def test_broken_files_are_taken_or_refused_in_a_line(name: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        read, taken = fuzz.fuzz(name, seconds=600, most=150)
    assert read == 150 and 0 < taken < 75


@pytest.mark.parametrize("wrong", [KeyError("x"), UserError("two\nlines"), UserError("x" * 5_000)], ids=repr)
def test_what_is_found_is_raised_and_its_file_kept(wrong: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise wrong

    monkeypatch.setattr(fuzz.Adapter, "from_pretrained", read)
    with pytest.raises((KeyError, AssertionError)):
        fuzz.fuzz("peft", seconds=600, most=150)
    assert list(fuzz.FOUND.glob("peft-1/*"))
