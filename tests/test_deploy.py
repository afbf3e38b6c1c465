"""What hosts are given: folders for Spaces, and the steps of the image."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import deploy.space
from tests.test_packaging import PINNED, PROJECT, ROOT, pin

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def header(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_the_repository_is_a_space_as_it_is() -> None:
    said, pins = header(ROOT), {each.name: pin(each) for each in PINNED}
    assert said["sdk"] == "gradio" and said["sdk_version"] == pins["gradio"] and (ROOT / said["app_file"]).is_file()
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(said["python_version"])
    assert len(said["short_description"]) <= 60


@pytest.mark.parametrize("zero_gpu", [False, True])
def test_a_folder_for_a_space_has_what_its_kind_needs(zero_gpu: bool, tmp_path: Path) -> None:
    deploy.space.main([str(tmp_path / "space"), *["--zero_gpu"] * zero_gpu])
    space = tmp_path / "space"
    tracked = subprocess.run(["git", "ls-files", *deploy.space.PARTS], cwd=ROOT, capture_output=True, text=True)
    for name in tracked.stdout.splitlines():
        assert (space / name).is_file(), name
    lines = (space / "requirements.txt").read_text().splitlines()
    wanted = {str(each) for each in PINNED}
    if zero_gpu:
        assert {str(Requirement(line)) for line in lines} == wanted | {"spaces==0.51.3"}
        assert header(space) == header(ROOT) | {
            "python_version": "3.12.12",
            "suggested_hardware": "zero-a10g",
            "startup_duration_timeout": "1h",
        }
    else:
        assert lines[0] == "--extra-index-url https://download.pytorch.org/whl/cpu"
        assert {str(Requirement(line)).replace("+cpu", "") for line in lines[1:]} == wanted
        assert header(space) == header(ROOT)
    text = (space / "README.md").read_text().split("---\n", 2)[2]
    assert text == (ROOT / "README.md").read_text().split("---\n", 2)[2]


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(SystemExit, match="is not empty"):
        deploy.space.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def steps() -> list[tuple[str, str]]:
    """The image's: an instruction, and what it is given."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def test_the_image_is_pinned_and_not_roots_and_copies_what_it_may() -> None:
    found = steps()
    base = dict(found)["FROM"]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
    names = [name for name, _ in found]
    assert dict(found)["USER"] == "hyperlora" and "RUN" not in names[names.index("USER") :]
    assert json.loads(dict(found)["ENTRYPOINT"]) == ["python", "app.py"]
    allowed = [line[1:] for line in DOCKERFILE.with_suffix(".dockerignore").read_text().splitlines() if line[0] == "!"]
    for source in (source for name, given in found if name == "COPY" for source in given.split()[:-1]):
        assert (ROOT / source).exists() and source.split("/")[0] in allowed, source
