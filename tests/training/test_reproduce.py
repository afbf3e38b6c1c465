import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hyperlora.errors import UserError
from tests.training.conftest import WordEmbedder, copy
from training import reproduce
from training.parts.cells import Budget, cells
from training.parts.claims import Claim
from training.parts.results import read_results
from training.reproduce import Options
from training.tasks import load_task

ROOT = Path(__file__).parents[2]
TINY = Budget(
    tasks=3, held_out=2, ladder=(2,), distilled=2, descriptions=2, fewer_descriptions=(1,), seeds=1, sft_steps=5,
    recon_steps=5, ladder_steps=4, probe_steps=2, multi_task_steps=2, lora_steps=2, batch_size=4, examples=2, draws=1,
    checked=2, targets=2, compared=3,
)  # fmt: skip
OPERATIONS = {
    "first": lambda t: t[0],
    "second": lambda t: t[1],
    "both": str,
    "twice": lambda t: t + t,
    "back": lambda t: t[::-1],
}


def never(*args, **kwargs):
    raise AssertionError("This was done before.")


def killed(*args, **kwargs):
    raise KeyboardInterrupt


def killed_by_the_system(*args):
    os.kill(os.getpid(), signal.SIGKILL)


def runs(stat: Path) -> bool:
    """Whether a process is there that is more than the mark of one that has ended."""
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def done(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Options, list[Claim]]:
    """A run that was killed once, at its first reconstruction, and then went on to its end."""
    folder = tmp_path_factory.mktemp("reproduce")
    for i, (name, operation) in enumerate(OPERATIONS.items()):
        copy(name, operation).save(folder / ("tasks" if i < 3 else "held_out"))
    places = {name: str(folder / name) for name in ("tasks", "held_out", "output", "report")}
    options = Options(base=str(tiny_base), oracles=places["held_out"], **places)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "train_recon", killed)
        with pytest.raises(KeyboardInterrupt):
            reproduce.reproduce(options, TINY, WordEmbedder())
    assert not Path(options.report).exists()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train_sft", "train_loras"):
            patch.setattr(reproduce, name, never)
        said = reproduce.reproduce(options, TINY, WordEmbedder())
    return options, said


def test_a_quick_run_decides_nothing(done, tmp_path):
    """The same cells, as if they were a quick run's."""
    shutil.copytree(done[0].output, tmp_path / "output")
    inputs = json.loads((tmp_path / "output" / "inputs.json").read_text())
    inputs["options"]["budget"]["decides"] = False
    (tmp_path / "output" / "inputs.json").write_text(json.dumps(inputs))
    options = replace(done[0], output=str(tmp_path / "output"), report=str(tmp_path / "report"))
    said = reproduce.reproduce(options, replace(TINY, decides=False), WordEmbedder())
    assert all(claim.held is None for claim in said) and any(claim.held is not None for claim in done[1])
    assert ": 0 held, 0 did not hold" in (tmp_path / "report" / "README.md").read_text()


def test_a_killed_run_goes_on_and_every_cell_is_measured(done):
    options, _ = done
    for cell in cells(TINY, 3):
        folder = Path(options.output) / "cells" / cell.name
        trained = json.loads((folder / "trained.json").read_text())
        rows, _ = read_results(folder / "results.json")
        assert trained["steps"] == len(trained["log"]) and trained["seconds"] > 0
        assert trained["tasks"] == (cell.tasks or 3)
        assert {row["split"] for row in rows} == set(cell.on)
        assert not (folder / "checkpoints").exists()


def test_reconstruction_gets_the_time_of_its_sft_cell(done):
    cell = Path(done[0].output) / "cells"
    sft, recon = (json.loads((cell / name / "trained.json").read_text()) for name in ("sft-M-0", "recon-M-0"))
    assert recon["steps"] == json.loads((cell / "recon-M-0" / "steps.json").read_text())["steps"] >= 1
    assert recon["options"]["equal_to"] == "sft-M-0" and sft["steps"] == TINY.sft_steps


def test_the_report_names_every_claim_and_cell(done):
    options, said = done
    text = (Path(options.report) / "README.md").read_text()
    assert all(claim.text in text and claim.evidence in text for claim in said)
    assert all(f"| {cell.name} |" in text for cell in cells(TINY, 3))
    assert "**undecided**" in text and "Arrow routing" in text and "oracle LoRA" in text
    for name in ("figure-1", "figure-4", "figure-5", "figure-6", "figure-10", "figure-12"):
        assert f"![{name}]({name}.png)" in text and (Path(options.report) / f"{name}.png").exists()


def test_two_processes_finish_what_is_missing(done, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(done[0].output, output)
    missing = ("sft-L", "recon-M-text", "recon-M-0")
    for name in missing:
        shutil.rmtree(output / "cells" / name)
    kept = (output / "cells" / "sft-M-0" / "trained.json").read_bytes()
    options = replace(done[0], output=str(output), report=str(tmp_path / "report"), processes=2)
    said = reproduce.reproduce(options, TINY, WordEmbedder())
    assert [claim.text for claim in said] == [claim.text for claim in done[1]]
    for name in missing:
        alone, together = (Path(folder) / "cells" / name / "results.json" for folder in (done[0].output, output))
        assert len(read_results(together)[0]) == len(read_results(alone)[0])
    assert (output / "cells" / "sft-M-0" / "trained.json").read_bytes() == kept


def test_a_process_that_is_killed_is_said_in_a_sentence(done, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "finish_alone", killed_by_the_system)
    options = replace(done[0], report=str(tmp_path / "report"), processes=2)
    with pytest.raises(UserError, match=r"was killed, most likely for want of memory.*fewer --processes"):
        reproduce.reproduce(options, TINY, WordEmbedder())


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the process in /proc")
def test_processes_end_with_a_run_that_is_killed(tmp_path):
    (tmp_path / "killed.py").write_text(
        "import os, signal, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from training.reproduce import end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, get_context('spawn'), initializer=end_with_parent)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 600)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    found = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, tmp_path / "killed.py"], env=found, stdout=subprocess.PIPE, text=True)
    left, patience = Path("/proc") / run.stdout.strip() / "stat", time.monotonic() + 60
    while runs(left) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not runs(left)


def test_a_second_run_only_writes_the_report_again(done, monkeypatch):
    options, said = done
    report = Path(options.report) / "README.md"
    before = report.read_text()
    report.unlink()
    for name in ("train_sft", "train_recon", "train_loras", "measure_cell", "measure_table_2"):
        monkeypatch.setattr(reproduce, name, never)
    assert reproduce.reproduce(options, TINY, WordEmbedder()) == said
    assert report.read_text() == before


def test_what_was_measured_of_another_checkpoint_is_measured_again(tmp_path):
    measured = []

    def measure() -> list[dict]:
        measured.append(1)
        return [{"method": "m", "split": "s", "kind": "none", "task": "t", "seed": 0, "score": len(measured) / 4}]

    for of, times in (("a", 1), ("a", 1), ("b", 2), ("b", 2), ("a", 3)):
        [row] = reproduce.results(tmp_path / "results.json", {"sft-M-0": of}, measure)
        assert len(measured) == times and row["score"] == times / 4


@pytest.mark.parametrize("folder", ["tasks", "held_out"])
def test_a_folder_of_other_examples_is_refused(done, tmp_path, folder):
    shutil.copytree(getattr(done[0], folder), tmp_path / folder)
    name = "first" if folder == "tasks" else "twice"
    task = load_task(tmp_path / folder / f"{name}.json")
    replace(task, test=task.test[1:]).save(tmp_path / folder)
    with pytest.raises(UserError, match=r"inputs\.json was made with other options or inputs"):
        reproduce.reproduce(replace(done[0], **{folder: str(tmp_path / folder)}), TINY, WordEmbedder())


def test_the_report_says_how_each_cell_was_trained_and_keeps_the_rows(done):
    options, _ = done
    text = (Path(options.report) / "README.md").read_text()
    assert "| sft-M-0 | muon | 0.002 | 0.6 |" in text and "| recon-M-delta | adamw | 0.001 |  |" in text
    rows, _ = read_results(Path(options.report) / "rows.json")
    assert {row["cell"] for row in rows} == {"table-2", *(cell.name for cell in cells(TINY, 3))}


def test_a_folder_of_another_budget_is_refused(done):
    with pytest.raises(UserError, match=r"inputs\.json was made with other options"):
        reproduce.reproduce(done[0], Budget(), WordEmbedder())


def test_tasks_both_trained_and_held_out_are_refused(tmp_path):
    for folder in ("tasks", "held_out"):
        for name in ("first", "second"):
            copy(name, OPERATIONS[name]).save(tmp_path / folder)
    options = Options(tasks=str(tmp_path / "tasks"), held_out=str(tmp_path / "held_out"), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match="'first' is trained on and held out"):
        reproduce.reproduce(options, TINY)


def test_the_full_run_has_27_cells_all_of_other_names():
    names = [cell.name for cell in cells(Budget(), 300)]
    assert len(names) == len(set(names)) == 27
    assert sum(name.startswith("sft") for name in names) == 14
