"""What README shows is what happens: its Python as it stands, and the examples of the page."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hyperlora
from hyperlora.model import Model
from hyperlora.presets import assets_dir, load_examples
from hyperlora.server import Beside, Server
from tests.ui.visitor import serving, wait_until
from training.parts.metrics import loops

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TABLE = re.findall(r"^\| (.+) \| `(.+)` \| `(.+)` \|$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The page of the bundled model, with the server beside it."""
    pipe = hyperlora.pipeline("mini")
    model = Model(lambda: pipe)
    model.start()
    wait_until(lambda: model.settled)
    with serving(model, beside=[(Beside, (Server(model),), {})]) as url:
        yield url
    pipe.close()


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_python_prints_what_its_comments_say(
    code: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    comments = re.findall(r"print\(.*\)  # (.*)", code)
    assert len(comments) == code.count("print(") > 0
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    capsys.readouterr()
    exec(re.sub(r"http://127.0.0.1:(7860|8000)", url.rstrip("/"), code), names)
    if "pipe" in names:
        names["pipe"].close()
    assert capsys.readouterr().out.replace("\n", "") == "".join(comments)


@pytest.mark.parametrize(
    ("name", "dtype"), [("mini", "float32"), ("smollm2-135m", "float32"), ("smollm2-135m", "bfloat16")]
)
def test_the_page_has_no_example_that_the_model_cannot_do(name: str, dtype: str) -> None:
    if name != "mini" and not (assets_dir() / "smollm2").is_dir():
        pytest.skip("assets/smollm2 is not there: no hypernetwork for SmolLM2 has been trained yet")
    pipe = hyperlora.pipeline(name, dtype=dtype)
    examples = load_examples(name)
    adapters = pipe.adapt([example["description"] for example in examples])
    found = pipe.chat_batch([example["message"] for example in examples], adapters)
    pipe.close()
    wrong = [
        (example["description"], answer)
        for example, answer in zip(examples, found, strict=True)
        if loops(answer) or answer.strip() not in (example["answers"] or [answer.strip()])
    ]
    assert wrong == []


def test_the_table_shows_examples_of_the_page() -> None:
    examples = [example for name in ("mini", "smollm2-135m") for example in load_examples(name)]
    known = {(e["description"], e["message"], answer) for e in examples for answer in e["answers"]}
    assert TABLE and known.issuperset(TABLE)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_bundled_model_takes_messages_as_people_type_them(count: int) -> None:
    """Of one word and of few, with a capital as a phone puts it at the beginning."""
    words = re.findall(r"\w+", "garden River window Bottle market Doctor flower Island silver Pocket castle")
    messages = [" ".join((words * 2)[i : i + count]) for i in range(len(words))]
    pipe = hyperlora.pipeline("mini")
    brackets, capitals = pipe.adapt(["Put each word in square brackets.", "Write the text in capital letters."])
    for adapter, right in (
        (brackets, lambda text: " ".join(f"[{word}]" for word in text.split())),
        (capitals, str.upper),
    ):
        answers = pipe.chat_batch(messages, [adapter] * len(messages))
        # Few may be wrong, since another machine rounds in another way.
        assert sum(answer.strip() == right(text) for answer, text in zip(answers, messages, strict=True)) >= 9
    pipe.close()
