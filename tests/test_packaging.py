"""What an installed copy gets: the same pins everywhere, and a wheel that carries the bundled model."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def test_requirements_pin_what_the_package_needs() -> None:
    """The newest where it takes several versions, and the package takes no version that nobody tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(line) for line in project["dependencies"]]
    pinned = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().split()]
    assert [each.name for each in pinned] == [each.name for each in needed]
    for pin, need in zip(pinned, needed, strict=True):
        [exact] = pin.specifier
        assert exact.operator == "=="
        assert exact.version in {each.version for each in need.specifier if each.operator in ("==", "<=")}


def test_the_wheel_carries_the_bundled_model_and_nothing_of_training(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    bundled = [path for path in (ROOT / "assets" / "mini").rglob("*") if path.is_file()]
    assert bundled
    more = [ROOT / "assets" / name for name in ("examples.json", "labelled.json", "style.css")]
    for path in (*bundled, *more):
        assert f"hyperlora/_assets/{path.relative_to(ROOT / 'assets').as_posix()}" in names
    assert not any(name.startswith(("training/", "tests/")) for name in names)
