"""What the stages add to `transformers.Trainer`: ready batches, checkpoints that are whole, progress, the best kept."""

import importlib.util
import json
import math
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hyperlora.config import read_json
from hyperlora.errors import UserError
from hyperlora.files import write_atomic, writing
from training.parts.batches import loader

STATE = "trainer_state.json"  # the last file of a checkpoint to be written
SETTINGS = "settings.json"
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt")


class BatchTrainer(Trainer):
    """A Trainer whose datasets yield ready batches, each process its own.

    A checkpoint that cannot be written leaves nothing behind, and `UserError` says why. So it does where the loss or a
    weight is no finite number any more: no checkpoint holds such a one.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments, **options):
        args.logging_nan_inf_filter = False  # it would log a loss of 0
        super().__init__(model, args, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._check(all(math.isfinite(logs.get(key, 0.0)) for key in ("loss", "eval_loss")))
        super().log(logs, start_time)

    def get_train_dataloader(self) -> DataLoader:
        return loader(self.train_dataset, self.args.device.type)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        return loader(self.eval_dataset, "cpu")  # they are there already

    def _save_checkpoint(self, model, trial) -> None:
        self._check(all(bool(weight.isfinite().all()) for weight in model.parameters()))
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            with writing(folder, "free some space and resume"):
                super()._save_checkpoint(model, trial)
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _check(self, finite: bool) -> None:
        if not finite:
            raise UserError(
                f"At step {self.state.global_step} the loss is no finite number any more: lower learning_rate, or "
                f"raise warmup_fraction. The checkpoints in {self.args.output_dir} are from before that."
            )

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # `STATE` comes after every process's file


def check_report_to(name: str) -> None:
    """`UserError` where losses are to be drawn by a package that is not there."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"report_to {name} needs a package: pip install {name}.")


def last_checkpoint(folder: Path, main_process: bool = True) -> Path | None:
    """The newest whole checkpoint of a run, or None.

    One that a killed process or a full disk left in parts is passed over; the main process says so and removes it.
    """
    for path in sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=checkpoint_step, reverse=True):
        fault = _fault(path)
        if fault is None:
            return path
        if main_process:
            print(f"The checkpoint {path} is not whole ({fault}): it is removed, and the one before it counts.")
            shutil.rmtree(path, ignore_errors=True)
    return None


def checkpoint_step(path: Path) -> int:
    """The optimizer steps that a checkpoint's name says; -1 where it says none."""
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in short; None where they can all be read."""
    names = {STATE, *FILES, *(file.name for file in path.glob("*.pt*"))}  # a file of random states for each process
    for name in sorted(names):
        try:
            if name == STATE:
                if json.loads((path / name).read_text(encoding="utf-8"))["global_step"] != checkpoint_step(path):
                    return f"{name} is of another step"
            elif name.endswith(".safetensors"):
                with safe_open(path / name, "pt"):  # whose header says how long the file is
                    pass
            elif (broken := zipfile.ZipFile(path / name).testzip()) is not None:
                return f"{name} is damaged at {broken}"
        except FileNotFoundError:
            return f"{name} is missing"
        except Exception:  # whatever reading garbage can raise
            return f"{name} is damaged"
    return None


def check_settings(folder: Path, settings: dict, resumed: bool, main_process: bool) -> None:
    """Keep what shapes a run beside its checkpoints; `UserError` where a resumed one had something else."""
    path = folder / SETTINGS
    if resumed and path.exists():
        before = read_json(path)
        for name in settings:
            if name in before and before[name] != settings[name]:
                raise UserError(
                    f"{folder} was trained with {name} {before[name]!r}, not {settings[name]!r}: resume with the same, "
                    "or take another output folder."
                )
    elif main_process:
        with writing(path, "free some space, then start again"):
            write_atomic(path, (json.dumps(settings, indent=1) + "\n").encode())


class Progress(TrainerCallback):
    """A bar on a terminal, and a line a log: loss, speed and time left.

    The speed is in tokens/s (all processes included, padding not) where the Trainer counts tokens, else in steps/s.
    """

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.started = self.logged = time.perf_counter()
        self.first = self.step = state.global_step
        self.tokens = state.num_input_tokens_seen
        hidden = None if state.is_world_process_zero else True  # None: hidden where there is no terminal
        self.bar = tqdm(total=state.max_steps, initial=self.first, unit="step", dynamic_ncols=True, disable=hidden)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.bar.update()

    def on_log(self, args, state, control, logs, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        if "eval_loss" in logs:
            tqdm.write(f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            now, tokens = time.perf_counter(), state.num_input_tokens_seen
            seconds = now - self.logged
            if tokens:
                speed = f"{(tokens - self.tokens) / seconds:,.0f} tokens/s"
            else:
                speed = f"{(state.global_step - self.step) / seconds:.3g} steps/s"
            error = f", error per element {logs['error']:.3g}" if "error" in logs else ""
            left = (state.max_steps - state.global_step) * (now - self.started) / (state.global_step - self.first)
            tqdm.write(
                f"step {state.global_step} of {state.max_steps}: loss {logs['loss']:.4f}{error}, {speed}, "
                f"{tqdm.format_interval(left)} left"
            )
            self.bar.set_postfix_str(f"loss {logs['loss']:.4f}, {speed}")
            self.logged, self.tokens, self.step = now, tokens, state.global_step

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.close()


class KeepBest(TrainerCallback):
    """Calls `save` at each validation loss that is below all before it, those before a resume included."""

    def __init__(self, save: Callable[[], None]):
        self.save = save

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        # the Trainer sets `best_metric` after this
        if state.is_world_process_zero and (state.best_metric is None or metrics["eval_loss"] < state.best_metric):
            self.save()


class KeepLast(TrainerCallback):
    """Calls `save` after each checkpoint."""

    def __init__(self, save: Callable[[], None]):
        self.save = save

    def on_save(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            self.save()
