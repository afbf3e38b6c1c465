"""Which checkpoint a run resumes from, whatever has become of the others."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import PrinterCallback, TrainingArguments

from training.parts.trainer import BatchTrainer, last_checkpoint


class Line(nn.Module):
    """The loss of a line through two numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * x).square().sum()}


class Numbers(IterableDataset):
    def __iter__(self):
        while True:
            yield {"x": torch.rand(2)}


def trainer(folder: Path, steps: int) -> BatchTrainer:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, save_steps=2, save_total_limit=2, use_cpu=True, report_to="none",
        disable_tqdm=True, remove_unused_columns=False, logging_steps=100,
    )  # fmt: skip
    made = BatchTrainer(Line(), arguments, train_dataset=Numbers())
    made.remove_callback(PrinterCallback)
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with the checkpoints of steps 4 and 6."""
    folder = tmp_path_factory.mktemp("checkpoints")
    trainer(folder, 6).train()
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-4", "checkpoint-6"]
    return folder


@pytest.fixture
def checkpoints(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_the_newest_whole_checkpoint_counts(checkpoints):
    assert last_checkpoint(checkpoints).name == "checkpoint-6"


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
DAMAGES = {
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "zero bytes": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "garbage": lambda file: file.write_bytes(bytes(range(1, 256)) * 8),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over_and_named(checkpoints, name, damage, capsys):
    DAMAGES[damage](checkpoints / "checkpoint-6" / name)
    assert last_checkpoint(checkpoints, main_process=False).name == "checkpoint-4"  # others leave it to the main one
    assert (checkpoints / "checkpoint-6").exists() and not capsys.readouterr().out
    assert last_checkpoint(checkpoints).name == "checkpoint-4" and not (checkpoints / "checkpoint-6").exists()
    assert f"checkpoint-6 is not whole ({name} is damaged)" in capsys.readouterr().out


@pytest.mark.parametrize("name", FILES[:3] + FILES[4:])
def test_a_checkpoint_that_lacks_a_file_is_passed_over(checkpoints, name, capsys):
    (checkpoints / "checkpoint-6" / name).unlink()
    assert last_checkpoint(checkpoints).name == "checkpoint-4"
    assert f"{name} is missing" in capsys.readouterr().out


def test_bits_that_changed_in_an_optimizer_are_found(checkpoints):
    file = checkpoints / "checkpoint-6" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    at = content.index(torch.load(file, weights_only=True)["state"][0]["exp_avg"].numpy().tobytes())
    content[at] ^= 1
    file.write_bytes(content)
    assert last_checkpoint(checkpoints).name == "checkpoint-4"


def test_where_none_is_whole_a_run_begins_again(checkpoints):
    for path in checkpoints.iterdir():
        (path / "optimizer.pt").write_bytes(b"")
    (checkpoints / "checkpoint-best").mkdir()
    assert last_checkpoint(checkpoints) is None
    assert last_checkpoint(checkpoints / "nowhere") is None


def test_training_goes_on_from_the_older_one(checkpoints):
    (checkpoints / "checkpoint-6" / "optimizer.pt").write_bytes(b"PK" * 100)
    again = trainer(checkpoints, 8)
    again.train(resume_from_checkpoint=str(last_checkpoint(checkpoints)))
    assert again.state.global_step == 8 and last_checkpoint(checkpoints).name == "checkpoint-8"
