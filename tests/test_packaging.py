"""What an installed copy gets: the same pins everywhere, and a wheel that carries the bundled model."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_requirements_and_the_package_pin_the_same_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = (ROOT / "requirements.txt").read_text().split()
    assert requirements == project["dependencies"]
    assert all("==" in line for line in requirements)


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
