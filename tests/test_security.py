"""Each line of SECURITY.md names its test; the test is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()
ROWS = re.findall(
    r"^\| (?!test|---)(.+) \| `(tests/[\w/.]+)(?:::(\w+))?` \|$", (ROOT / "SECURITY.md").read_text(), re.M
)


def test_every_row_names_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ")]
    assert len(ROWS) == len(rows) - 2 * sum(row.endswith("| test |") for row in rows) > 25


@pytest.mark.parametrize(("line", "file", "name"), ROWS, ids=[row[2] or row[1] for row in ROWS])
def test_the_test_is_there(line: str, file: str, name: str) -> None:
    assert f"def {name or 'test_'}" in (ROOT / file).read_text(), line
