"""`python -m training.mini` from nothing to a preset that chats, on six tasks and a few steps."""

import json
from pathlib import Path

import pytest

import hyperlora
from hyperlora.errors import UserError
from training.mini import __main__ as build
from training.mini import card
from training.mini.suite import suite
from training.parts.results import read_results

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
    [("--examples=13", "tasks"), ("--base_steps=5", "base"), ("--lora_steps=3", "multi_task"), ("--init=x", "base")],
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
