"""The repository as it is pushed, run as a Space on a CPU runs it."""

import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from hyperlora.presets import assets_dir
from tests.browser.test_nginx import free_port
from tests.ui.over_http import Caller
from tests.ui.test_app import ROOT, no_user, started
from tests.ui.visitor import wait_until

BRACKETS = "Put each word in square brackets."
STAND_IN = ROOT / "tests" / "ui" / "stand_in"  # for the package `spaces`
SPACE = {"SYSTEM": "spaces", "SPACE_ID": "somebody/hyperlora", "PYTHONPATH": str(STAND_IN)}


@pytest.fixture
def pushed(tmp_path: Path) -> Path:
    """What git has of the repository, in a folder of its own."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone of the repository")
    for name in filter(None, listed.stdout.split("\0")):
        (tmp_path / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / "app" / name)
    return tmp_path / "app"


def test_it_answers_behind_the_spaces_proxy(pushed: Path, tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    environment = {
        "HOME": str(home),
        "SPACE_HOST": "somebody-hyperlora.hf.space",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": str(port := free_port()),  # there it is 7860
        "GRADIO_NUM_PORTS": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    user = [part.replace("54321", "1000") for part in no_user()]
    with started(folder=pushed, preset=None, within=user, **SPACE, **environment) as url:
        assert url == f"http://localhost:{port}/"
        proxy = {"Host": "somebody-hyperlora.hf.space", "X-Forwarded-Proto": "https"}
        proxy["X-Forwarded-Host"] = proxy["Host"]
        config = httpx.get(f"{url}config", headers=proxy, timeout=300).json()
        assert config["root"] == "https://somebody-hyperlora.hf.space" and config["space_id"] == "somebody/hyperlora"
        page = httpx.get(url, headers=proxy, timeout=300).text
        assert "cdnjs" not in page and "fonts.g" not in page  # nothing from elsewhere
        visitor = Caller(url, "one")
        wait_until(lambda: "still loading" not in (made := visitor.ask("generate", f"1 {BRACKETS}")[0][0]) and made)
        turn, warned = visitor.send("one two three", BRACKETS)
        assert turn.by == BRACKETS and turn.end in ("stop", "length") and not warned
        if not (assets_dir() / "smollm2").is_dir():  # then it is the mini model
            assert turn.answer == "[one] [two] [three]"
