"""What the benchmarks share: interleaved timing, memory, the difference of two results, and a table to print."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hyperlora.base import find_device
from hyperlora.errors import UserError
from hyperlora.presets import asset_or_hub, get_preset
from training.parts.results import table

# Sixteen tasks for the mini model, each with a message.
TASKS = {
    "Reverse the order of the words.": "one two three",
    "Write the text in capital letters.": "a quiet morning",
    "Give the second word.": "river stone cloud",
    "Put the words in alphabetical order.": "pear apple fig",
    "Add the two numbers.": "12 30",
    "Write the plural of the word.": "window",
    "Remove all vowels.": "green tea please",
    "Count the words.": "the cat sat on the mat",
    "Give the last letter of each word.": "some small words",
    "Write the number in words.": "342",
    "Put square brackets around the first word.": "open the door",
    "Repeat the text twice.": "hello there",
    "Subtract the second number from the first.": "57 18",
    "Join the words with hyphens.": "state of the art",
    "Give the longest word.": "a long and winding road",
    "Spell the word, one letter at a time.": "lantern",
}


def parser(description: str, repetitions: int | None = None) -> argparse.ArgumentParser:
    """A parser; with the option `repetitions` where a number is given, its default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repetitions is not None:
        parser.add_argument(
            "--repetitions", type=int, default=repetitions, help=f"of each way (default: {repetitions})"
        )
    return parser


def add_device(options: argparse.ArgumentParser) -> None:
    def device(name: str) -> str:
        try:
            find_device(name)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return name

    options.add_argument("--device", type=device, default="cpu", help="cpu, or cuda (default: cpu)")


def arguments(description: str, repetitions: int, device: bool = False) -> argparse.Namespace:
    """The command line: `repetitions`, and the folders `base` and `hyperlora`, the bundled mini model's by default.

    `device`: with that option too.
    """
    options = parser(description, repetitions)
    options.add_argument("--base", help="the folder of a base model instead of the bundled one")
    options.add_argument("--hyperlora", help="the folder of a hypernetwork for it")
    if device:
        add_device(options)
    args = options.parse_args()
    if (args.base is None) != (args.hyperlora is None):
        options.error("give both --base and --hyperlora, or neither")
    if args.base is None:
        preset = get_preset("mini")
        args.base, args.hyperlora = asset_or_hub(preset.base), asset_or_hub(preset.hyperlora)
    return args


def medians(
    runs: dict[str, Callable[[], object]], repetitions: int, after: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Median seconds of each run: all of them once to warm up, then all in turn, `repetitions` times.

    A run ends when the GPU has done what it asked for. `after` comes after each run and is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + repetitions):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
            after()
            synchronize()
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def synchronize() -> None:
    """Wait until the GPU has done what it was asked for, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def resident_mb(pid: int | str = "self", field: str = "VmRSS") -> float:
    """Resident memory of a process, or with VmHWM its peak, in MB (Linux only)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"The process {pid} has no resident memory.")


def held_mb(device: str, peak: bool = False) -> float:
    """What this process holds on the device, or held at its peak, in MB: resident memory, or a GPU's tensors."""
    if device != "cpu":
        return (torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)) / 1e6
    return resident_mb(field="VmHWM" if peak else "VmRSS")


def added_mb(run: Callable[[], object], device: str) -> float:
    """The most memory that `run` takes beyond what is held before it, in MB (on the CPU: Linux only)."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = held_mb(device)
    run()
    synchronize()
    return held_mb(device, peak=True) - before


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, as a part of the largest value in `b`."""
    return ((a - b).abs().max() / b.abs().max()).item()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table."""
    print(table(columns, rows), end="")
