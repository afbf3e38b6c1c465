"""Build the bundled mini model, one stage after another; a stage that is done is not done again.

python -m training.mini [--output runs/mini] [--assets assets/mini] [--instruction_induction DIR]

Stages: tasks, base (with its tokenizer), multi_task, hyperlora-M, oracles, notice, evaluation, assets.
A killed build goes on where it was: the long stages from their last checkpoint.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.generator import HyperLoRA
from training import evaluate, sft
from training.lora import LoRAConfig, train_loras
from training.mini.base import train_base
from training.mini.blind import blind_descriptions, blind_tasks
from training.mini.card import write_card
from training.mini.splits import examples
from training.mini.suite import suite
from training.parts.adapters import TARGET_MODULES, load_adapters, save_adapters
from training.parts.compile import pays
from training.parts.digest import digest, value_digest
from training.parts.kinds import random_strings
from training.parts.notice import add_notice, shipped
from training.parts.options import option, parse, run
from training.parts.requests import everyday_requests
from training.parts.results import write_results
from training.parts.stages import check_stage, read_stages, run_stages
from training.tasks import Task, load_tasks

FROM_INSTRUCTION_INDUCTION = (
    "first_word_letter", "second_word_letter", "letters_list", "sum", "diff", "num_to_verbal", "singular_to_plural",
)  # fmt: skip
ORACLES = (
    "first_word", "third_letter", "drop_last_word", "reverse_words", "swap_ends_letter", "hyphen_between_letters",
    "upper_first_word", "sum", "plural", "past_tense", "number_to_words", "remove_vowels",
)  # fmt: skip
HYPERLORA = "hyperlora-M"
SHAPED_BY = {  # a stage: the options that it depends on, and all that follow it
    "tasks": ("examples",),
    "base": ("content of init", "base_steps"),
    "multi_task": ("lora_steps",),
    HYPERLORA: ("hyperlora_steps",),
    "evaluation": ("content of instruction_induction", "seeds"),
}


@dataclass
class Options:
    """Where things go, and how long the trainings are; the defaults are those of the model in the repository."""

    output: str = option("runs/mini", "folder for the work: tasks, checkpoints, results")
    assets: str = option("assets/mini", "folder for the finished model and its card")
    instruction_induction: str | None = option(
        None, "folder of the benchmark's tasks, to be evaluated on (never trained)"
    )
    init: str | None = option(
        None, "folder of a finished model, such as assets/mini: base and head M go on from its weights"
    )
    base_steps: int = option(14000, "optimizer steps of the base model", least=1)
    hyperlora_steps: int = option(8000, "optimizer steps of the hypernetwork", least=1)
    lora_steps: int = option(200, "optimizer steps of the multi-task LoRA and of the tasks' own", least=1)
    seeds: int = option(3, "evaluation seeds; each draws its own examples and descriptions", least=1)
    examples: int = option(400, "training examples a task for the adapters", least=1)
    until: str = option("assets", "the last stage to run")


def write_tasks(options: Options, work: Path) -> None:
    """The suite as task files: what hypernetworks train on, what is held out, and what only oracles train on."""
    for task in suite():
        tests = examples(task, "test", 100, 0)
        common = {"descriptions": list(task.descriptions), "eval_descriptions": list(task.eval_descriptions)}
        train = examples(task, "train", options.examples, 0) if task.group == "trained" else []
        Task(task.name, train=train, test=tests, group=task.group, **common).save(work / "tasks" / task.group)
        if task.name in ORACLES or task.group == "combination":
            own = examples(task, "oracle", options.examples, 0)
            Task(task.name, train=own, test=tests, group=task.group, **common).save(work / "tasks" / "oracle")


def tasks_of(work: Path, group: str) -> list[Task]:
    return load_tasks(work / "tasks" / group)


def adapted_base(work: Path) -> tuple[AdaptedModel, object]:
    model, tokenizer = load_base(work / "base", device="cuda" if torch.cuda.is_available() else "cpu")
    return AdaptedModel(model, TARGET_MODULES, max_adapters=256), tokenizer


def train_multi_task(options: Options, work: Path) -> None:
    adapted, tokenizer = adapted_base(work)
    groups = {"multi_task": tasks_of(work, "trained")}
    config = LoRAConfig(
        batch_size=64,
        gradient_accumulation_steps=1,
        max_steps=options.lora_steps,
        learning_rate=1e-3,
        neftune_alpha=0,
        compile=pays(options.lora_steps),
    )
    save_adapters(work / "loras", train_loras(adapted, tokenizer, groups, config), groups)


def train_oracles(options: Options, work: Path) -> None:
    adapted, tokenizer = adapted_base(work)
    groups = {task.name: [task] for task in tasks_of(work, "oracle")}
    config = LoRAConfig(
        batch_size=8, gradient_accumulation_steps=1, max_steps=options.lora_steps, learning_rate=3e-3, neftune_alpha=0
    )
    save_adapters(work / "loras", train_loras(adapted, tokenizer, groups, config), groups)


def train_hyperlora(options: Options, work: Path) -> None:
    adapted, tokenizer = adapted_base(work)
    tasks = tasks_of(work, "trained")
    config = sft.SFTConfig(
        head="M",
        offset="factors",
        batch_size=64,
        gradient_accumulation_steps=1,
        max_steps=options.hyperlora_steps,
        optimizer="muon",
        learning_rate=2e-3,
        warmup_fraction=0.05,
        embedding_noise=0.6,
        lora_dropout=0.0,
        neftune_alpha=0.0,
        save_every=500,
        eval_every=1000,
        eval_batches=16,
        compile=pays(options.hyperlora_steps),
    )
    init = HyperLoRA.from_pretrained(Path(options.init) / HYPERLORA) if options.init else None
    offset = load_adapters(work / "loras")["multi_task"] if init is None else None
    hyperlora = sft.build(adapted, tokenizer, tasks, config, offset, init=init)
    hyperlora.config.base_model = "assets/mini/base"  # where a checkout has it: what exported adapters name
    sft.train(hyperlora, adapted, tokenizer, tasks, config, work / HYPERLORA, resume=True)


def measure_notice(options: Options, work: Path) -> None:
    """Measure below which similarity a description is far from all trained ones, and store it in the checkpoint."""
    unseen = [
        text for group in ("trained", "combination") for t in tasks_of(work, group) for text in t.eval_descriptions
    ]
    others = {
        "blind": [text for texts in blind_descriptions().values() for text in texts],
        "everyday requests": [request.description for request in everyday_requests()],
        "random strings": random_strings(1000, Random(0)),
    }
    add_notice(work / HYPERLORA, unseen, others, work / "notice.json")


def induction_tasks(folder: str) -> list[Task]:
    """Those of the benchmark that are measured. Their names change: its "sum" is not the suite's, which is trained."""
    found = {task.name: task for task in load_tasks(folder, names=FROM_INSTRUCTION_INDUCTION)}
    return [replace(found[name], name=f"induction_{name}") for name in FROM_INSTRUCTION_INDUCTION]


def run_evaluation(options: Options, work: Path) -> None:
    adapted, tokenizer = adapted_base(work)
    splits = {"trained tasks": tasks_of(work, "trained")}
    splits["blind descriptions"] = blind_tasks(splits["trained tasks"])
    splits["new combinations"] = tasks_of(work, "combination")
    splits["new operations"] = tasks_of(work, "operation")
    if options.instruction_induction:
        splits["instruction induction"] = induction_tasks(options.instruction_induction)
    hyperloras = {"HyperLoRA M": HyperLoRA.from_pretrained(work / HYPERLORA)}
    settings = evaluate.Settings(examples=3, descriptions=2, seeds=options.seeds)
    rows = evaluate.evaluate(
        adapted, tokenizer, splits, splits["trained tasks"], hyperloras, load_adapters(work / "loras"), settings
    )
    write_results(work / "results.json", rows, asdict(settings))


def assemble(options: Options, work: Path) -> None:
    """Copy what the preset needs, the hypernetwork in bfloat16, and write the card."""
    assets = Path(options.assets)
    (assets / "base").mkdir(parents=True, exist_ok=True)
    for file in (work / "base").iterdir():
        if file.is_file():
            shutil.copyfile(file, assets / "base" / file.name)
    hyperlora = shipped(HyperLoRA.from_pretrained(work / HYPERLORA))
    hyperlora.save_pretrained(assets / HYPERLORA, dtype=torch.bfloat16)
    shutil.copyfile(work / "results.json", assets / "results.json")
    write_card(assets / "README.md", work)


def stages(options: Options, work: Path) -> dict[str, Callable[[], None]]:
    trained = [task for task in suite() if task.group == "trained"]
    return {
        "tasks": lambda: write_tasks(options, work),
        "base": lambda: train_base(
            trained, work / "base", options.base_steps, Path(options.init) / "base" if options.init else None
        ),
        "multi_task": lambda: train_multi_task(options, work),
        HYPERLORA: lambda: train_hyperlora(options, work),
        "oracles": lambda: train_oracles(options, work),
        "notice": lambda: measure_notice(options, work),
        "evaluation": lambda: run_evaluation(options, work),
        "assets": lambda: assemble(options, work),
    }


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    work = Path(options.output)
    work.mkdir(parents=True, exist_ok=True)
    every = stages(options, work)
    check_stage(every, options.until)
    given, done = asdict(options) | contents(options), read_stages(work)  # also before hours of training
    if options.init and "assets" in done and Path(options.init).resolve() == Path(options.assets).resolve():
        print(
            f"--init {options.init} holds what this build made of it: go on from that in another --output.", flush=True
        )
        given["content of init"] = done["base"]["shaped by"].get("content of init")
    run_stages(work, every, options.until, given, SHAPED_BY, {"tasks of the suite": suite_digest()})


def contents(options: Options) -> dict[str, str | None]:
    """What the folders that are read hold, in short; `UserError` for one that cannot be read."""
    init, induction = options.init, options.instruction_induction
    return {
        "content of init": digest(Path(init) / "base", Path(init) / HYPERLORA) if init else None,
        "content of instruction_induction": value_digest([asdict(task) for task in induction_tasks(induction)])
        if induction
        else None,
    }


def suite_digest() -> str:
    """Of what the suite's tasks are and how they are worded."""
    return value_digest([(task.name, task.group, task.descriptions, task.make(Random(0))) for task in suite()])


if __name__ == "__main__":
    run(main)
