"""`python -m training.mini` from nothing to a preset that chats, on six tasks and a few steps."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

import hyperlora
from hyperlora.errors import UserError
from training.mini import __main__ as build
from training.mini import card
from training.mini.suite import suite
from training.parts.results import read_results
from training.tasks import Task

NAMES = ("first_word", "plural", "sum", "upper_whole", "third_word", "product")
FEW = ["--base_steps=4", "--hyperlora_steps=3", "--lora_steps=2", "--examples=12"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `work` and `assets` of a build on a part of the suite."""
    folder = tmp_path_factory.mktemp("build")
    few = [task for task in suite() if task.name in NAMES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "suite", lambda: few)
        patch.setattr(card, "suite", lambda: few)
        for _ in range(2):  # the second time there is nothing to do
            build.main([f"--output={folder / 'work'}", f"--assets={folder / 'assets'}", *FEW])
    return folder


def test_the_build_is_a_preset_that_chats(built: Path):
    pipe = hyperlora.pipeline(base=built / "assets" / "base", hyperlora=built / "assets" / "hyperlora-M")
    try:
        adapter = pipe.adapt("Give the first word of the sentence.")
        assert adapter.base_model == "assets/mini/base"
        assert isinstance(pipe.chat("one two", adapter=adapter, max_new_tokens=4), str)
    finally:
        pipe.close()


def test_every_stage_is_done_once(built: Path):
    stages = json.loads((built / "work" / "stages.json").read_text())
    assert len(stages) == 8 and {"tasks", "base", "assets"} < set(stages)


@pytest.mark.parametrize(
    ("option", "stage"),
    [("--examples=13", "tasks"), ("--base_steps=5", "base"), ("--lora_steps=3", "multi_task")],
)
def test_a_stage_that_was_done_otherwise_is_not_gone_on_from(built: Path, monkeypatch, option: str, stage: str):
    few = [task for task in suite() if task.name in NAMES]
    monkeypatch.setattr(build, "suite", lambda: few)
    name = option[2:].split("=")[0]
    with pytest.raises(UserError, match=f"has the stage {stage} with {name} .*take another --output"):
        build.main([f"--output={built / 'work'}", f"--assets={built / 'assets'}", *FEW, option])
    monkeypatch.setattr(build, "suite", lambda: few[1:])
    with pytest.raises(UserError, match="has the stage tasks with tasks of the suite"):
        build.main([f"--output={built / 'work'}", f"--assets={built / 'assets'}", *FEW])


@pytest.fixture
def begin(tmp_path: Path, monkeypatch):
    """begin(*options): a build in `work`, into `assets`; its stages only leave their names, and the last new assets.

    Gives the names of the stages that it ran.
    """
    ran: list[str] = []

    def assemble() -> None:
        (tmp_path / "assets" / "base" / "model.safetensors").write_text("what was made")

    def stages(options: build.Options, work: Path) -> dict:
        named = {name: partial(ran.append, name) for name in (*build.SHAPED_BY, "assets")}
        return named | {"assets": lambda: (ran.append("assets"), assemble())}

    monkeypatch.setattr(build, "stages", stages)
    monkeypatch.setattr(build, "suite", lambda: [])
    for name in ("one", "assets"):
        for file in ("base/config.json", "base/model.safetensors", f"{build.HYPERLORA}/hyperlora.safetensors"):
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(file)

    def run(*options: str) -> list[str]:
        ran.clear()
        build.main([f"--output={tmp_path / 'work'}", f"--assets={tmp_path / 'assets'}", *options])
        return list(ran)

    return run


def test_a_model_to_go_on_from_is_known_by_its_content(begin, tmp_path: Path):
    two = tmp_path / "two"
    assert begin(f"--init={tmp_path / 'one'}", "--until=base") == ["tasks", "base"]
    (tmp_path / "one").rename(two)
    (two / "README.md").write_text("Of no matter.")
    assert begin(f"--init={two}", "--until=base") == []
    for part in ("base/config.json", "base/model.safetensors", f"{build.HYPERLORA}/hyperlora.safetensors"):
        (two / part).write_text("another")
        with pytest.raises(UserError, match=r"has the stage base with content of init .* take another --output"):
            begin(f"--init={two}")
        (two / part).write_text(part)
    with pytest.raises(UserError, match=r"nowhere.* cannot be read"):
        begin("--init=nowhere")
    assert begin(f"--init={two}")[0] == "multi_task"


def test_a_build_may_take_the_place_of_what_it_went_on_from(begin, tmp_path: Path, capsys):
    """It is done then, and says so: what it made is no model that it went on from."""
    init = f"--init={tmp_path / 'assets'}"
    assert begin(init)[-1] == "assets"
    assert "go on from that" not in capsys.readouterr().out
    assert begin(init) == []
    assert "holds what this build made of it: go on from that in another --output" in capsys.readouterr().out
    with pytest.raises(UserError, match="has the stage base with base_steps"):
        begin(init, "--base_steps=7")


def test_tasks_to_be_evaluated_on_are_known_by_their_content(begin, tmp_path: Path):
    for name in ("a", "b"):
        for task in build.FROM_INSTRUCTION_INDUCTION:
            Task(task, train=[], test=[{"input": name, "output": "c"}], descriptions=["Do."]).save(tmp_path / name)
    assert "evaluation" in begin(f"--instruction_induction={tmp_path / 'a'}")
    (tmp_path / "a").rename(tmp_path / "c")
    assert begin(f"--instruction_induction={tmp_path / 'c'}") == []
    for other in ([f"--instruction_induction={tmp_path / 'b'}"], []):
        with pytest.raises(UserError, match="has the stage evaluation with content of instruction_induction"):
            begin(*other)


def test_the_card_says_from_what_a_model_was_trained(built: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(built / "work", tmp_path / "work")
    log = tmp_path / "work" / "stages.json"
    stages = json.loads(log.read_text())
    stages[build.HYPERLORA]["shaped by"]["content of init"] = "0123abcd"
    log.write_text(json.dumps(stages))
    monkeypatch.setattr(card, "suite", lambda: [task for task in suite() if task.name in NAMES])
    card.write_card(tmp_path / "README.md", tmp_path / "work")
    texts = [path.read_text().split() for path in (tmp_path / "README.md", built / "assets" / "README.md")]
    went_on, scratch = (" ".join(words) for words in texts)
    assert "went on from an earlier model of the same form: the base for 4 steps" in went_on
    assert "trained from scratch: the base for 4 steps, the hypernetwork for 3" in scratch
    assert "scratch" not in went_on and "went on" not in scratch


def test_the_card_is_made_of_the_results(built: Path):
    text = (built / "assets" / "README.md").read_text()
    rows, _ = read_results(built / "work" / "results.json")
    for method in {row["method"] for row in rows}:
        assert f"| {method} |" in text
    assert {"base", "base, prompted", "multi-task LoRA", "retrieval", "HyperLoRA M"} < {row["method"] for row in rows}
    assert {"trained tasks", "blind descriptions"} < {row["split"] for row in rows}
    assert "{" not in text


def test_oracles_train_on_inputs_of_their_own(built: Path):
    oracle = json.loads((built / "work" / "tasks" / "oracle" / "first_word.json").read_text())
    trained = json.loads((built / "work" / "tasks" / "trained" / "first_word.json").read_text())
    inputs = [{e["input"] for e in part} for part in (oracle["train"], trained["train"], trained["test"])]
    assert all(inputs) and not (inputs[0] & inputs[1] or inputs[0] & inputs[2] or inputs[1] & inputs[2])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--until", "evaluate", "There is no stage 'evaluate'; there are tasks, base"),
        ("--instruction_induction", "nowhere", "nowhere holds no task files"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_trained(option, value, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build.main(["--output", str(tmp_path / "work"), option, value])
    assert not list(tmp_path.rglob("*.json"))
