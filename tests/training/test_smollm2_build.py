"""`python -m training.smollm2` on a tiny base: from task files to a hypernetwork that chats."""

import json
from pathlib import Path

import pytest

import hyperlora
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from training.mini.suite import suite
from training.smollm2 import __main__ as build
from training.smollm2 import tasks as data
from training.tasks import Task

FEW = [
    "--lora_steps=2", "--lora_batch=6", "--steps=3", "--rows_a_step=6", "--batch_size=3", "--save_every=2",
    "--longest=250", "--head_size=16", "--latent_size=16", "--log_every=1", "--shares=text=0.3,open=0.2",
]  # fmt: skip


def real(name: str, group: str = "colours") -> Task:
    rows = [{"input": f"{name} {i}", "output": f"{i} {name}"} for i in range(8)]
    return Task(name, [f"Do {name}.", f"{name}, please"], [f"I need {name}."], rows[:6], rows[6:], group)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four real tasks of which one is held out, and one open request."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("red", "green", "blue", "white"):
        real(name).save(folder / "real")
    (folder / "real" / "held_out.txt").write_text("white near\n")
    real("poem").save(folder / "open")
    return folder


@pytest.fixture(scope="module")
def built(folder: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("smollm2")
    few = [task for task in suite() if task.name in ("first_word", "third_person", "sum")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "suite", lambda: few)
        patch.setattr(data, "own_tasks", list)
        for _ in range(2):  # the second time there is nothing to do
            build.main(arguments(folder, tiny_base, work))
    return work


def arguments(folder: Path, base: Path, work: Path) -> list[str]:
    places = {
        "tasks": folder / "real",
        "open": folder / "open",
        "base": base,
        "output": work,
        "assets": work / "assets",
    }
    return [*(f"--{name}={place}" for name, place in places.items()), *FEW]


def test_the_build_gives_a_hypernetwork_that_chats(built: Path, tiny_base: Path):
    pipe = hyperlora.pipeline(base=tiny_base, hyperlora=built / "assets" / "hyperlora")
    try:
        assert pipe.describe and pipe.hyperlora.config.prompt_style == "either"
        adapter = pipe.adapt("Do red.")
        assert adapter.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert adapter.prompt_style == "description_input"
        assert isinstance(pipe.chat("red 1", adapter=adapter, max_new_tokens=4), str)
    finally:
        pipe.close()


def test_every_task_is_where_it_belongs(built: Path):
    names = {part: sorted(task.name for task in build.tasks_of(built, part)) for part in ("trained", "near", "far")}
    assert names == {
        "trained": ["blue", "green", "poem", "red", "text_first_word", "text_sum"],
        "near": ["white"],
        "far": [],
    }
    groups = {task.name: task.group for task in build.tasks_of(built, "trained")}
    assert (groups["red"], groups["poem"], groups["text_sum"]) == ("colours", "open", "text")


def test_the_tokens_of_all_runs_are_counted(built: Path, folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch):
    few = [task for task in suite() if task.name == "first_word"]
    monkeypatch.setattr(data, "suite", lambda: few)
    monkeypatch.setattr(data, "own_tasks", list)
    before = HyperLoRA.from_pretrained(built / "hyperlora").config.trained_tokens
    assert 3 * 6 * 10 < before < 3 * 6 * 250
    more = [*arguments(folder, tiny_base, tmp_path), f"--init={built / 'hyperlora'}", "--until=hyperlora"]
    build.main(more)
    after = HyperLoRA.from_pretrained(tmp_path / "hyperlora").config.trained_tokens
    assert before + 3 * 6 * 10 < after < before + 3 * 6 * 250
    assert not (tmp_path / "loras").exists()  # the offset is the one that it has


def test_what_is_left_out_is_validated_on(folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch):
    few = [task for task in suite() if task.name == "first_word"]
    monkeypatch.setattr(data, "suite", lambda: few)
    monkeypatch.setattr(data, "own_tasks", list)
    more = ["--left_out=1", "--eval_every=2", "--eval_batches=1", "--until=hyperlora"]
    build.main([*arguments(folder, tiny_base, tmp_path), *more])
    [out] = build.tasks_of(tmp_path, "validation")
    assert out.name in ("blue", "green", "red") and out.name not in {
        t.name for t in build.tasks_of(tmp_path, "trained")
    }
    state = json.loads(next((tmp_path / "hyperlora" / "checkpoints").glob("*/trainer_state.json")).read_text())
    assert any("eval_loss" in line for line in state["log_history"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--until=evaluate"], "There is no stage 'evaluate'; there are tasks, multi_task"),
        (["--shares=open=0.3"], "At most 0.2 of the rows may be open requests"),
        (["--shares=open"], "must be of the form"),
        (["--left_out=3"], "left_out is 3, and there are 3 real tasks"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_trained(folder, tiny_base, tmp_path, monkeypatch, more, message):
    monkeypatch.setattr(data, "suite", list)
    monkeypatch.setattr(data, "own_tasks", list)
    with pytest.raises(UserError, match=message):
        build.main([*arguments(folder, tiny_base, tmp_path / "work"), *more])
    assert not list(tmp_path.rglob("*.safetensors"))
