"""What README shows is what happens: its Python as it stands, and the examples of the page."""

import re
from pathlib import Path

import pytest

import hyperlora
from hyperlora.presets import load_examples

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TABLE = re.findall(r"^\| (.+) \| `(.+)` \| `(.+)` \|$", README, re.MULTILINE)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_python_prints_what_its_comments_say(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    comments = re.findall(r"print\(.*\)  # (.*)", code)
    assert len(comments) == code.count("print(") > 0
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    names["pipe"].close()
    assert capsys.readouterr().out.replace("\n", "") == "".join(comments)


def test_the_page_has_no_example_that_the_model_cannot_do() -> None:
    answers = {(description, message): answer for description, message, answer in TABLE}
    answers |= {("Make a hashtag of the words.", "good morning all"): "#goodmorningall"}
    pipe = hyperlora.pipeline("mini")
    for example in load_examples():
        answer = pipe.chat(example["message"], adapter=pipe.adapt(example["description"]))
        assert answer == answers[example["description"], example["message"]]
    pipe.close()
