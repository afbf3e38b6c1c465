"""Say, from shapes alone, how much memory and time each stage takes on which GPUs.

python -m training.plan [--base mistral-7b] [--batch_size 8] [--gradient_checkpointing] [--processes 8 --shard_base]

Memory is that of `training/parts/memory.py`. Time is FLOPs over the GPU's own figure times a utilisation, and then the
bytes that have to be read over half its bandwidth: an estimate to choose a machine by. An H200 took 0.27 s for an SFT
step of 8 x 512 tokens (43 per cent of its figure) and 37.0 GB, and 0.06 s for one of reconstruction of 489 targets.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hyperlora.base import Precision
from hyperlora.errors import UserError
from hyperlora.files import resolve_folder
from hyperlora.memory import GB, SHAPES, BaseShape, HyperShape, Parts, cache, chat
from training.parts import memory
from training.parts.options import option, parse, run
from training.parts.results import table


@dataclass(frozen=True)
class GPU:
    """Memory in GB (10^9 bytes) and, by the maker's figures, dense bfloat16 TFLOP/s and memory bandwidth in GB/s."""

    memory: float
    tflops: float
    bandwidth: float


GPUS = {
    "RTX 3090": GPU(25.3, 71, 936),
    "L4": GPU(24.1, 121, 300),
    "A10": GPU(24.1, 125, 600),
    "RTX 4090": GPU(25.3, 165, 1008),
    "L40S": GPU(47.7, 362, 864),
    "A100 40": GPU(42.4, 312, 1555),
    "A100 80": GPU(85.0, 312, 2039),
    "H100": GPU(85.0, 989, 3350),
    "H200": GPU(150.7, 989, 4800),
}
BANDWIDTH = 0.5  # of the figure, that is reached
RECON_PASSES = 16  # reads and writes of all targets, or of as much that the heads give and its gradients, in a step
BUS = 20e9  # bytes a second from the host's memory to a GPU


@dataclass(kw_only=True)
class Options:
    """A run at paper scale (Table 7); a row is one example, a pass one forward."""

    base: str = option(
        "mistral-7b", f"{', '.join(SHAPES)}, a folder, GGUF file or Hub id, of which only the settings are read"
    )
    base_dtype: Precision = option("bfloat16", "how the frozen base is held")
    head: Literal["L", "M", "S"] = option("M", "the hypernetwork's head")
    rank: int = option(8, "rank of the adapters", least=1)
    target_modules: str = option("q_proj,v_proj", "names of the adapted linears, with commas between")
    d_emb: int = option(1024, "size of a description's embedding", least=1)
    tasks: int = option(479, "training tasks", least=1)
    examples: int = option(500, "training examples a task", least=1)
    descriptions: int = option(128, "descriptions a task", least=1)
    tokens: int = option(256, "tokens of a row on average, which make the time", least=1)
    longest: int = option(512, "tokens of the longest row, which make the memory", least=1)
    answer: int = option(64, "tokens of an answer", least=1)
    batch_size: int = option(8, "SFT: rows of a pass on one GPU", least=1)
    epochs: float = option(5.0, "SFT: passes over all examples", above=0)
    gradient_checkpointing: bool = option(False, "SFT: compute the base's layers twice")
    processes: int = option(1, "GPUs that work together", least=1)
    shard_base: bool = option(False, "SFT: the base is split over the GPUs (FSDP)")
    loras_at_once: int = option(1, "LoRAs: trained in one pass", least=1)
    lora_batch_size: int = option(4, "LoRAs: rows of each in a pass", least=1)
    lora_epochs: float = option(10.0, "LoRAs: passes over a task's examples", above=0)
    recon_steps: int = option(100_000, "reconstruction: steps over all LoRAs", least=1)
    piece: int = option(2**27, "reconstruction: weights compared at once", least=1)
    targets_on_device: bool = option(True, "reconstruction: the library lies in the GPU's memory, not on the disk")
    evaluated: int = option(
        33_000, "evaluation: answers in all (11 tasks, 3 descriptions, 10 ways, 100 examples)", least=1
    )
    eval_batch_size: int = option(64, "evaluation: rows decoded together", least=1)
    utilisation: float = option(
        0.4, "part of a GPU's FLOP/s that is reached; with 4 and 8 bits two thirds of it", above=0, most=1
    )


@dataclass
class Stage:
    """A stage on one GPU: its peak memory, and the FLOPs, the bytes read there and those from the host in all."""

    parts: Parts
    flops: float
    read: float = 0.0
    sent: float = 0.0

    @property
    def bytes(self) -> float:
        return sum(self.parts.values())

    def hours(self, gpu: GPU, utilisation: float) -> float:
        """Hours on that GPU, whether or not it fits."""
        compute = self.flops / (gpu.tflops * 1e12 * utilisation)
        return max(compute + self.read / (gpu.bandwidth * 1e9 * BANDWIDTH), self.sent / BUS) / 3600


def base_shape(name: str) -> BaseShape:
    """A named base, or one that lies in a folder or on the Hub. Raises `UserError` where there is none."""
    if name in SHAPES:
        return SHAPES[name]
    if (path := Path(name).expanduser()).is_file():
        return BaseShape.from_path(path)
    if "/" not in name and not path.is_dir():
        raise UserError(
            f"There is no base {name!r}: give a folder, a GGUF file, a Hub id, or one of {', '.join(SHAPES)}."
        )
    return BaseShape.from_path(resolve_folder(name, None, ["config.json"]))


def stages(options: Options) -> dict[str, Stage]:
    """Name -> what the stage needs of each of the GPUs that work together."""
    if options.shard_base and options.base_dtype in ("4bit", "8bit"):
        raise UserError(f"A base that is split (shard_base) is held in float32 or bfloat16, not {options.base_dtype}.")
    base = base_shape(options.base)
    shape = HyperShape(base, options.head, options.rank, tuple(options.target_modules.split(",")), options.d_emb)
    rows, dtype, tokens, answer = options.tasks * options.examples, options.base_dtype, options.tokens, options.answer
    peak = {"tokens": options.longest, "answers": answer, "dtype": dtype}
    loras = options.loras_at_once
    sft_flops = memory.training_flops(shape, 1, tokens, answer, options.gradient_checkpointing)
    one_lora = memory.training_flops(shape, 1, tokens, answer, generated=False)
    library = options.tasks * shape.adapter * 4.0
    rounds = options.evaluated * answer / options.eval_batch_size  # forwards that give one token to each row
    return {
        "a LoRA a task": Stage(
            memory.lora(shape, loras, options.lora_batch_size, **peak),
            one_lora * rows * options.lora_epochs,
        ),
        "multi-task LoRA": Stage(
            memory.lora(shape, 1, options.lora_batch_size, **peak),
            one_lora * rows * options.lora_epochs,
        ),
        "reconstruction": Stage(
            memory.recon(shape, options.tasks, options.piece)
            | ({"library": library} if options.targets_on_device else {}),
            memory.recon_flops(shape, options.tasks) * options.recon_steps,
            RECON_PASSES * library * options.recon_steps,
            0.0 if options.targets_on_device else library * options.recon_steps,
        ),
        "SFT": Stage(
            memory.sft(
                shape,
                options.batch_size,
                **peak,
                checkpointing=options.gradient_checkpointing,
                processes=options.processes,
                sharded=options.shard_base,
                descriptions=options.tasks * options.descriptions,
            ),
            sft_flops * rows * options.epochs / options.processes,
        ),
        "evaluation": Stage(
            chat(shape, options.eval_batch_size, options.longest + answer, dtype),
            options.evaluated * memory.forward_flops(base, 1, tokens + answer, answer),
            rounds * (base.bytes(dtype) + cache(base, options.eval_batch_size, tokens + answer)),
        ),
    }


def plan(options: Options) -> str:
    """Markdown: stages down, GPUs across; hours where the stage fits, and the memory that it takes."""
    utilisation = options.utilisation * (2 / 3 if options.base_dtype in ("4bit", "8bit") else 1)
    lines, found = [], stages(options)
    for name, stage in found.items():
        cells = [
            _time(stage.hours(gpu, utilisation)) if stage.bytes <= gpu.memory * GB else "too small"
            for gpu in GPUS.values()
        ]
        lines.append([name, f"{stage.bytes / GB:.1f} GB", *cells])
    parts = [
        f"{name}: {', '.join(f'{part} {size / GB:.1f}' for part, size in stage.parts.items())} GB"
        for name, stage in found.items()
    ]
    return "\n".join([table(["stage", "memory", *GPUS], lines), *parts])


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:.0f} d"


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    print(plan(options))
    print(
        f"\nMemory is of one of {options.processes} GPUs at a row's {options.longest} tokens; time at {options.tokens} "
        f"tokens a row, {options.utilisation:.0%} of the FLOP/s (fewer with few bits) and {BANDWIDTH:.0%} of the "
        "bandwidth: estimates."
    )


if __name__ == "__main__":
    run(main)
