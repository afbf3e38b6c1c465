"""Build the hypernetwork over SmolLM2-135M-Instruct, one stage after another; a stage that is done is not done again.

python -m training.smollm2 --tasks DIR [--open DIR] [--output runs/smollm2] [--assets assets/smollm2] [--device cuda]

Stages: tasks, multi_task, hyperlora, notice, evaluation, assets. A killed build goes on where it was: the long stage
from its last checkpoint, the evaluation from its last answer. --tasks is a folder of task files, in which held_out.txt
names those that are only measured; --open is what training.distill wrote.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Literal

import torch

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.devices import fast_bfloat16
from hyperlora.errors import UserError
from hyperlora.generator import CONFIG, HyperLoRA
from hyperlora.presets import PRESETS, SMALL_PRESET, base_path
from training import sft
from training.lora import LoRAConfig, train_loras
from training.parts.adapters import load_adapters, save_adapters
from training.parts.compile import pays
from training.parts.digest import base_digest, digest
from training.parts.kinds import random_strings
from training.parts.notice import add_notice, shipped
from training.parts.options import option, parse, run
from training.parts.requests import everyday_requests
from training.parts.results import read_results, write_results
from training.parts.rows import RowOptions, parse_shares
from training.parts.stages import check_stage, run_stages
from training.smollm2.card import write_card
from training.smollm2.evaluation import Plan, run_evaluation
from training.smollm2.tasks import KINDS, OPEN, TEXT, Collection, collect
from training.tasks import Task, load_tasks

BASE = PRESETS[SMALL_PRESET].base  # what exported adapters name
LICENSES = "LICENSES.md"  # what the folder of tasks says of them
HYPERLORA = "hyperlora"
MOST_OPEN = 0.2  # part of the rows: what they teach is what the base says anyway
TRAINED, VALIDATION = "trained", "validation"
SCORES = ("score", "contains")
ROWS = ("prompt_style", "described", "earlier_turns", "other_system", "retyped", "shares", "longest")
ADAPTERS = ("base", "target_modules", "rank", "alpha")
SHAPED_BY = {  # a stage: the options that it depends on, and all that follow it
    "tasks": ("content of tasks", "content of open", "content of instruction_induction", "research", "left_out"),
    "multi_task": (*ADAPTERS, *ROWS, "content of init", "lora_steps", "lora_rate", "lora_batch"),
    HYPERLORA: ("head", "latent_size", "head_size", "steps", "rows_a_step", "optimizer", "learning_rate", "schedule",
                "embedding_noise", "seed"),
    "evaluation": ("content of adapters", "seeds"),
}  # fmt: skip


@dataclass(kw_only=True)
class Options(RowOptions):
    """Where things are and go, what is trained, and how long; the defaults are those of the model in the repository."""

    tasks: str = option(help="folder of task files; held_out.txt in it names those that are only measured")
    open: str | None = option(None, "folder of open requests with the base's own answers, from training.distill")
    instruction_induction: str | None = option(None, "folder of a benchmark whose test inputs are never trained on")
    research: bool = option(False, "train on the tasks that are marked research too: to measure, not to give away")
    left_out: int = option(0, "so many of the real tasks are validated on instead of trained on", least=0)
    output: str = option("runs/smollm2", "folder for the work: tasks, checkpoints, results")
    assets: str = option("assets/smollm2", "folder for the finished hypernetwork and its card")
    base: str = option(SMALL_PRESET, "the base model: a preset's name, a folder, a GGUF file or a Hub id")
    init: str | None = option(None, "a trained HyperLoRA to go on from, with a new optimizer; it has its offset")
    adapters: str | None = option(
        None, "folder of plain LoRAs to measure beside it, as training.lora writes it; default: the offset alone"
    )
    seeds: int = option(3, "evaluation seeds; each draws its own examples and descriptions", least=1)
    target_modules: str = option("q_proj,v_proj", "names of the adapted linears, with commas between, or all")
    rank: int = option(8, "rank r of every adapter", least=1)
    alpha: float = option(16.0, "LoRA alpha", above=0)
    prompt_style: Literal["input", "description_input", "either"] = option("either", "what prompts hold")
    shares: str = option(
        "text=0.15,open=0.2", "parts of the rows that the text suite and the open requests get, where there are any"
    )
    longest: int = option(256, "tokens of a row; longer ones are left out", least=32)
    lora_steps: int = option(300, "optimizer steps of the multi-task LoRA, the offset", least=1)
    lora_rate: float = option(1e-3, "its learning rate", above=0)
    lora_batch: int = option(32, "its rows an optimizer step", least=1)
    head: Literal["L", "M", "S"] = option("M", "L: A and B at once, M: one of them, S: one rank of one")
    latent_size: int = option(128, "width of the hypernetwork's blocks", least=4)
    head_size: int = option(512, "size of a head's input", least=1)
    steps: int = option(8000, "optimizer steps of the hypernetwork", least=1)
    rows_a_step: int = option(32, "its rows an optimizer step", least=1)
    batch_size: int = option(32, "rows in one forward pass", least=1)
    optimizer: Literal["adamw", "muon"] = option("muon", "as in training.sft")
    learning_rate: float = option(2e-3, "highest learning rate, reached after the warm-up", above=0)
    schedule: Literal["linear", "constant"] = option("constant", "the rate falls all the way, or in the last tenth")
    embedding_noise: float = option(0.5, "standard deviation of noise on the description's embedding", least=0)
    seed: int = option(0, "of the hypernetwork's start, the data and the noise", least=0)
    save_every: int = option(250, "steps between two checkpoints to resume from", least=1)
    eval_every: int = option(0, "steps between two validations, with left_out; 0: none", least=0)
    eval_batches: int = option(24, "batches of a validation", least=1)
    log_every: int = option(25, "steps between two lines of progress", least=1)
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "of the base; auto: bfloat16 where that is faster")
    compile: Literal["auto", "yes", "no"] = option("auto", "torch.compile the base's layers; auto: on a GPU")
    device: str = option("cpu", "cpu or cuda")
    until: str = option("assets", "the last stage to run")


def adapted_base(options: Options) -> tuple[AdaptedModel, object]:
    wanted = options.dtype
    if wanted == "auto":
        wanted = "bfloat16" if fast_bfloat16(options.device) else "float32"
    base = base_path(options.base) if options.base in PRESETS else options.base
    model, tokenizer = load_base(base, dtype=wanted, device=options.device)
    modules = options.target_modules.split(",")
    if modules == ["all"]:
        modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return AdaptedModel(model, modules, max_adapters=256), tokenizer


def compiles(options: Options, steps: int) -> bool:
    return options.compile == "yes" or (options.compile == "auto" and options.device != "cpu" and pays(steps))


def rows(options: Options, tasks: list[Task]) -> dict[str, object]:
    """The settings of `RowOptions`, as both trainings take them."""
    groups = {task.group for task in tasks}
    shares = ",".join(f"{g}={part}" for g, part in parse_shares(options.shares).items() if g in groups)
    names = ("prompt_style", "described", "earlier_turns", "other_system", "retyped")
    return {name: getattr(options, name) for name in names} | {"shares": shares, "longest": options.longest}


def write_tasks(options: Options, work: Path) -> None:
    """The tasks as files: what is trained on, what is validated on, and what is held out."""
    found = collect(options.tasks, options.open, options.instruction_induction, options.research)
    parts = {TRAINED: found.trained, VALIDATION: []}
    if options.left_out:
        parts[TRAINED], parts[VALIDATION] = split(found, options.left_out)
    for name, tasks in (parts | found.held_out).items():
        for task in tasks:
            task.save(work / "tasks" / name)
    report = {name: len(tasks) for name, tasks in (parts | found.held_out).items()} | {"left out": found.left_out}
    if (licenses := Path(options.tasks) / LICENSES).is_file():
        shutil.copyfile(licenses, work / LICENSES)
    names = {task.name for task in parts[TRAINED]}
    sources = {source: own for source, every in found.sources.items() if (own := [n for n in every if n in names])}
    (work / "sources.json").write_text(json.dumps(sources, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (work / "tasks.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1), flush=True)


def split(found: Collection, count: int) -> tuple[list[Task], list[Task]]:
    """The training tasks without `count` of the real ones, always the same, and these."""
    real = sorted(task.name for task in found.trained if task.group not in (TEXT, OPEN))
    if count >= len(real):
        raise UserError(f"left_out is {count}, and there are {len(real)} real tasks: leave some to train on.")
    out = set(Random(0).sample(real, count))
    return [t for t in found.trained if t.name not in out], [t for t in found.trained if t.name in out]


def tasks_of(work: Path, part: str) -> list[Task]:
    folder = work / "tasks" / part
    return load_tasks(folder) if folder.exists() else []


def train_multi_task(options: Options, work: Path) -> None:
    if options.init:  # it has its offset
        return
    adapted, tokenizer = adapted_base(options)
    tasks = tasks_of(work, TRAINED)
    accumulation = -(-options.lora_batch // options.batch_size)
    config = LoRAConfig(
        **rows(options, tasks),
        rank=options.rank,
        alpha=options.alpha,
        lora_dropout=0.0,
        batch_size=options.lora_batch // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=options.lora_steps,
        learning_rate=options.lora_rate,
        neftune_alpha=0.0,
        compile=compiles(options, options.lora_steps),
        seed=options.seed,
        log_every=options.log_every,
    )
    groups = {"multi_task": tasks}
    save_adapters(work / "loras", train_loras(adapted, tokenizer, groups, config), groups)


def train_hyperlora(options: Options, work: Path) -> None:
    adapted, tokenizer = adapted_base(options)
    tasks, validation = tasks_of(work, TRAINED), tasks_of(work, VALIDATION)
    accumulation = -(-options.rows_a_step // options.batch_size)
    config = sft.SFTConfig(
        **rows(options, tasks),
        head=options.head,
        latent_size=options.latent_size,
        head_size=options.head_size,
        rank=options.rank,
        alpha=options.alpha,
        offset="factors",
        batch_size=options.rows_a_step // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=options.steps,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        schedule=options.schedule,
        warmup_fraction=min(0.05, 100 / options.steps),
        embedding_noise=options.embedding_noise,
        lora_dropout=0.0,
        neftune_alpha=0.0,
        save_every=options.save_every,
        eval_every=options.eval_every if validation else 0,
        eval_batches=options.eval_batches,
        log_every=options.log_every,
        compile=compiles(options, options.steps),
        seed=options.seed,
    )
    init = HyperLoRA.from_pretrained(options.init) if options.init else None
    offset = None if init else load_adapters(work / "loras")["multi_task"]
    hyperlora = sft.build(adapted, tokenizer, tasks, config, offset, init=init)
    hyperlora.config.base_model, hyperlora.config.base_revision = BASE, None
    sft.train(hyperlora, adapted, tokenizer, tasks, config, work / HYPERLORA, resume=True, held_out=validation or None)


def measure_notice(options: Options, work: Path) -> None:
    unseen = [text for task in tasks_of(work, TRAINED) if task.group != TEXT for text in task.eval_descriptions]
    others = {
        "everyday requests": [request.description for request in everyday_requests()],
        "random strings": random_strings(1000, Random(0)),
    }
    others |= {
        f"{kind} tasks": [text for task in tasks_of(work, kind) for text in task.eval_descriptions] for kind in KINDS
    }
    others = {kind: texts for kind, texts in others.items() if texts}
    add_notice(work / HYPERLORA, unseen, others, work / "notice.json")


def measure(options: Options, work: Path) -> None:
    """All figures of the card, and whether chats hold the description, which the hypernetwork keeps."""
    adapted, tokenizer = adapted_base(options)
    hyperlora = HyperLoRA.from_pretrained(work / HYPERLORA)
    folder = Path(options.adapters) if options.adapters else work / "loras"
    adapters = load_adapters(folder) if folder.exists() else {}
    hyperlora.config.describe = run_evaluation(
        work / "evaluation",
        adapted,
        tokenizer,
        f"{base_digest(adapted.model)} {adapted.model.dtype}",
        {part: tasks_of(work, part) for part in (TRAINED, *KINDS)},
        hyperlora,
        adapters,
        Plan(seeds=options.seeds),
        options.instruction_induction,
    )
    hyperlora.config.save(work / HYPERLORA / CONFIG)


def assemble(options: Options, work: Path) -> None:
    """What comes along: the hypernetwork in bfloat16, its card, and the scores behind that."""
    assets = Path(options.assets)
    hyperlora = shipped(HyperLoRA.from_pretrained(work / HYPERLORA))
    hyperlora.save_pretrained(assets / f"{HYPERLORA}-{hyperlora.config.head}", dtype=torch.bfloat16)
    rows, facts = read_results(work / "evaluation" / "results.json")
    kept = ("method", "split", "kind", "task", "seed")
    thin = [{key: row[key] for key in kept} | {key: round(row[key], 3) for key in SCORES if key in row} for row in rows]
    write_results(assets / "results.json", thin, facts)
    write_card(assets / "README.md", work, hyperlora.config)
    if (work / LICENSES).exists():
        shutil.copyfile(work / LICENSES, assets / LICENSES)


def stages(options: Options, work: Path) -> dict[str, Callable[[], None]]:
    return {
        "tasks": lambda: write_tasks(options, work),
        "multi_task": lambda: train_multi_task(options, work),
        HYPERLORA: lambda: train_hyperlora(options, work),
        "notice": lambda: measure_notice(options, work),
        "evaluation": lambda: measure(options, work),
        "assets": lambda: assemble(options, work),
    }


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    work = Path(options.output)
    every = stages(options, work)
    check_stage(every, options.until)
    if parse_shares(options.shares).get(OPEN, 0) > MOST_OPEN:
        raise UserError(f"At most {MOST_OPEN} of the rows may be open requests: give them a smaller part of shares.")
    work.mkdir(parents=True, exist_ok=True)
    run_stages(work, every, options.until, asdict(options) | contents(options), SHAPED_BY, {})


def contents(options: Options) -> dict[str, str | None]:
    """What the folders that are read hold, in short."""
    folders = {name: getattr(options, name) for name in ("tasks", "open", "instruction_induction", "init", "adapters")}
    return {f"content of {name}": digest(folder) if folder else None for name, folder in folders.items()}


if __name__ == "__main__":
    run(main)
