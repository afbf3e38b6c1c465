"""Several processes, each with its part of the same batches, train what one process trains."""

import itertools
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from tests.training.test_sft import ROOT, command, logged
from training.parts.batches import Batches
from training.parts.options import parse
from training.sft import Options, main

CONFIGS = ROOT / "training" / "configs"
TWO_CPUS = ["--config_file", str(CONFIGS / "accelerate-2-cpus.yaml")]
QUIET = ["--dropout", "0", "--lora_dropout", "0", "--neftune_alpha", "0", "--learning_rate", "5e-4"]


def accelerate(launcher: list[str], arguments: list[str], stage: str = "training.sft") -> subprocess.CompletedProcess:
    """`accelerate launch LAUNCHER -m STAGE ARGUMENTS`, on this machine alone.

    Its port is taken all the while: then the launcher itself opens another, and keeps it.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        launch = ["accelerate.commands.launch", *launcher, "--main_process_port", str(taken.getsockname()[1])]
        return subprocess.run(
            [sys.executable, "-m", *launch, "-m", stage, *arguments],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True,
            text=True,
            timeout=1200,
        )


@pytest.fixture
def sources() -> list[list[dict]]:
    """Four tasks of 10 examples, each of its own length."""
    return [[{"input_ids": [task, i] * (1 + (7 * i + task) % 11)} for i in range(10)] for task in range(4)]


def test_all_processes_together_have_the_rows_of_one(sources):
    for source in sources:
        for row in source:
            row["labels"] = row["input_ids"]
    choices = [[2 * task, 2 * task + 1] for task in range(4)]

    def steps(batch_size: int, passes: int, processes: int) -> list[list[tuple]]:
        """The rows of the first 70 steps (more than a window), and which of its two descriptions each drew."""
        streams = [
            iter(Batches(sources, choices, batch_size, 0, passes=passes, process=process, processes=processes))
            for process in range(processes)
        ]
        found = []
        for _ in range(70):
            batches = [next(stream) for _ in range(passes) for stream in streams]
            rows = [
                (row[:2].tolist(), index)
                for b in batches
                for row, index in zip(b["input_ids"], b["index"].tolist(), strict=True)
            ]
            found.append(sorted(rows))
        return found

    whole = steps(8, 1, 1)
    assert steps(4, 1, 2) == steps(2, 4, 1) == steps(2, 2, 2) == steps(1, 2, 4) == whole
    assert len({str(step) for step in whole}) == 70

    def first(start: int) -> torch.Tensor:
        later = Batches(sources, choices, 2, 0, start=start, passes=2, process=1, processes=2)
        return next(iter(later))["input_ids"]

    stream = iter(Batches(sources, choices, 2, 0, passes=2, process=1, processes=2))
    batches = [batch["input_ids"] for batch in itertools.islice(stream, 140)]
    for start in (0, 5, 127, 128, 139):
        assert torch.equal(first(start), batches[start])


def test_two_processes_train_what_one_trains(tasks, tiny_base, tmp_path):
    """50 steps, 8 rows a step, cut in two passes or in two processes."""
    for task in tasks:
        task.save(tmp_path / "tasks")
    size = [*QUIET, "--max_steps", "50"]
    one, two = (command(tiny_base, tmp_path / "tasks", tmp_path / name, *size) for name in ("one", "two"))
    main([*one, "--batch_size", "4", "--gradient_accumulation_steps", "2"])
    done = accelerate(TWO_CPUS, [*two, "--batch_size", "4", "--gradient_accumulation_steps", "1"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step 50 of 50") == 1  # one process speaks for both
    first, second = logged(tmp_path / "one", 50), logged(tmp_path / "two", 50)
    assert len(first) == 50 and min(first[-5:]) < min(first[:5]) - 0.1
    assert second == pytest.approx(first, abs=1e-3)

    inputs = torch.eye(3)
    adapters = [HyperLoRA.from_pretrained(tmp_path / name).generate(embeddings=inputs) for name in ("one", "two")]
    for a, b in zip(*adapters, strict=True):
        for module in a.weights:
            torch.testing.assert_close(a.delta_w(module, 1), b.delta_w(module, 1), atol=1e-3, rtol=1e-2)


def test_a_base_split_over_two_processes_trains_the_same(tasks, tiny_base, tmp_path):
    """FSDP for the frozen base, with its layers computed twice; the hypernetwork is whole in each process."""
    for task in tasks:
        task.save(tmp_path / "tasks")
    size = [*QUIET, "--max_steps", "5"]
    one, two = (command(tiny_base, tmp_path / "tasks", tmp_path / name, *size) for name in ("one", "two"))
    main([*one, "--batch_size", "8", "--gradient_accumulation_steps", "1"])
    split = ["--batch_size", "2", "--gradient_accumulation_steps", "2", "--shard_base", "--gradient_checkpointing"]
    done = accelerate(TWO_CPUS, [*two, *split])
    assert done.returncode == 0, done.stderr[-3000:]
    assert logged(tmp_path / "two", 5) == pytest.approx(logged(tmp_path / "one", 5), abs=1e-4)


def test_a_launcher_that_starts_one_process_of_two_is_refused(tasks, tiny_base, tmp_path, monkeypatch):
    """`accelerate launch --cpu --num_processes 2` without MPI: half of each step would be missing."""
    tasks[0].save(tmp_path / "tasks")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # what that launcher sets
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match=r"accelerate-2-cpus\.yaml"):
        main(command(tiny_base, tmp_path / "tasks", tmp_path / "out"))


def test_plain_loras_are_not_trained_by_two_processes(tmp_path):
    """Each would train all of them, and write the same files; it is said before anything is read."""
    nowhere = ["--tasks", "nowhere", "--base", "nowhere", "--output", str(tmp_path / "out")]
    done = accelerate(TWO_CPUS, nowhere, "training.lora")
    assert done.returncode != 0 and "training.lora runs in one process: start it without" in done.stderr
    assert "nowhere" not in done.stderr.split("Traceback")[0] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sft-*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_settings_are_options(path: Path):
    """Every key is one of the stage's, and the rows of an optimizer step are Table 7's on the GPUs that it is for."""
    options = parse(Options, ["--config", str(path), "--tasks", "T", "--output", "O"])
    gpus = 1
    if launcher := re.search(r"--config_file (\S+)", path.read_text()):
        gpus = load_config_from_file(str(ROOT / launcher[1])).num_processes
    assert options.batch_size * options.gradient_accumulation_steps * gpus == 64
    assert options.device == "cuda" and options.bf16


def test_there_is_a_config_for_one_gpu_for_ddp_and_for_fsdp():
    options = [
        parse(Options, ["--config", str(path), "--tasks", "T", "--output", "O"]) for path in CONFIGS.glob("sft-*.yaml")
    ]
    assert {(o.base_dtype, o.shard_base) for o in options} >= {("bfloat16", False), ("4bit", False), ("bfloat16", True)}
