"""The paper's experiments at the size of a small base: 27 hypernetworks, and a report of which claims held.

python -m training.reproduce [--base assets/mini/base] [--tasks DIR] [--held_out DIR] [--output DIR] [--report DIR]

`python -m training.mini --until tasks` writes the default tasks. Each cell, one hypernetwork, has its own folder in
OUTPUT/cells: trained.json once it is trained, results.json once it is measured. What is there is not done again, and a
killed training goes on from its last checkpoint; so a killed run is started again with the same command. A full run is
planned for at most six hours on two cores, `--quick` for twenty minutes: a smoke test that decides no claim. So small a
model leaves cores idle when it trains on several: `--processes 2` trains two hypernetworks at a time.
"""

import json
import os
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from random import Random
from threading import Thread

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.config import read_json
from hyperlora.devices import fast_bfloat16
from hyperlora.embedder import LAST_TOKEN, MINILM, load_embedder
from hyperlora.errors import UserError
from hyperlora.files import write_atomic, writing
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from training import analysis, evaluate, recon, sft
from training.lora import LoRAConfig, train_loras
from training.parts.adapters import TARGET_MODULES, average, load_adapters, read_index, save_adapters
from training.parts.baselines import generate
from training.parts.cells import QUICK, Budget, Cell, cells
from training.parts.claims import HELD_OUT, TRAINED, Claim, claims, ending, scores, seeds_of
from training.parts.compile import pays
from training.parts.digest import base_digest, digest, value_digest
from training.parts.figures import (
    draw_activations,
    draw_against_descriptions,
    draw_against_error,
    draw_bars,
    save_figure,
)
from training.parts.kinds import KINDS, NO_DESCRIPTION, UNSEEN, pick_descriptions
from training.parts.library import Library, pack
from training.parts.options import option, parse, run
from training.parts.report import write_report
from training.parts.results import ORACLE, read_results, write_results
from training.parts.scoring import Trial, fitting, score
from training.parts.trainer import checkpoint_step, last_checkpoint
from training.tasks import Task, load_tasks

MAX_BYTES = 256 * 2**20
TABLE_2 = {"HyperLoRA M": "sft-M-0", "HyperLoRA L": "sft-L", "HyperLoRA S": "sft-S"}


class Remembered:
    """An embedder that reads no text twice: the cells share their descriptions."""

    def __init__(self, embedder):
        self.embedder, self.d_emb, self.known = embedder, embedder.d_emb, {}

    def embed(self, texts: list[str]) -> Tensor:
        if new := [text for text in dict.fromkeys(texts) if text not in self.known]:
            self.known |= zip(new, self.embedder.embed(new), strict=True)
        return torch.stack([self.known[text] for text in texts])


@dataclass
class Lab:
    """What all cells share. tasks: in the ladder's order, so that a rung is a beginning of them."""

    adapted: AdaptedModel
    tokenizer: object
    tasks: list[Task]
    held_out: list[Task]
    embedders: dict[str, Remembered]
    budget: Budget
    folder: Path
    device: str

    @property
    def loras(self) -> Path:
        return self.folder / "loras"

    def of(self, cell: Cell) -> list[Task]:
        return self.tasks[: cell.tasks or None]


def once(path: Path, options: Mapping, make: Callable[[], Mapping]) -> dict:
    """The JSON file `path`, or what `make` gives, then written there. UserError where it was made otherwise."""
    options = json.loads(json.dumps(options))
    if path.exists():
        data = read_json(path, MAX_BYTES)
        if data.get("options") != options:
            raise UserError(f"{path} was made with other options or inputs: take another output folder.")
        return data
    data = {"options": options} | dict(make())
    with writing(path, "free some space and start again"):
        write_atomic(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())
    return data


# ---- plain LoRAs ----


def train_plain(lab: Lab, oracles: Sequence[Task]) -> None:
    """The multi-task LoRA of all tasks and of each rung, every task's own, the held-out tasks' too, and the average.

    A rung has its own multi-task LoRA: that of all tasks would tell it of tasks that it must not know.
    """
    budget = lab.budget
    common = LoRAConfig(
        gradient_accumulation_steps=1, lora_dropout=0.0, neftune_alpha=0.0, bf16=fast_bfloat16(lab.device),
        compile=pays(budget.lora_steps),
    )  # fmt: skip
    shared = replace(common, batch_size=budget.batch_size, max_steps=budget.multi_task_steps, learning_rate=1e-3)
    own = replace(common, batch_size=8, max_steps=budget.lora_steps, learning_rate=3e-3)
    groups = {"multi_task": lab.tasks}
    groups |= {f"multi_task_{rung}": lab.tasks[:rung] for rung in budget.ladder if rung < len(lab.tasks)}
    parts = [({name: group}, shared) for name, group in groups.items()]
    single = {task.name: [task] for task in [*lab.tasks, *oracles]}
    names = list(single)
    for first in range(0, len(names), own.loras_at_once):
        parts.append(({name: single[name] for name in names[first : first + own.loras_at_once]}, own))
    for part, config in parts:
        done = read_index(lab.loras)
        if missing := {name: group for name, group in part.items() if name not in done}:
            save_adapters(lab.loras, train_loras(lab.adapted, lab.tokenizer, missing, config), missing)
    if "average" not in read_index(lab.loras):
        adapters = load_adapters(lab.loras)
        mean = average([adapters[task.name] for task in lab.tasks])
        save_adapters(lab.loras, {"average": mean}, {"average": lab.tasks})


# ---- training a cell ----


def train_cell(lab: Lab, cell: Cell) -> dict:
    """OUTPUT/cells/NAME/trained.json: {"tasks", "steps", "seconds", "log"} and what `claims.ending` gives."""
    folder = lab.folder / "cells" / cell.name
    steps = cell.steps or (lab.budget.sft_steps if cell.scheme == "sft" else lab.budget.recon_steps)
    if cell.equal_to:
        steps = once(folder / "steps.json", {}, lambda: {"steps": equal_steps(lab, cell, folder)})["steps"]

    def make() -> dict:
        last = last_checkpoint(folder / "checkpoints")
        before = checkpoint_step(last) if last else 0
        if before >= steps:  # killed after its last step: then nothing says how long it took
            shutil.rmtree(folder / "checkpoints")
            before = 0
        config = settings(lab, cell, steps)
        log = (train_sft if cell.scheme == "sft" else train_recon)(lab, cell, config, folder)
        seconds = log[-1]["train_runtime"] * steps / max(steps - before, 1)  # as if it had never been killed
        losses = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
        return (
            {"tasks": len(lab.of(cell)), "steps": steps, "seconds": seconds}
            | {"optimizer": getattr(config, "optimizer", "adamw"), "learning_rate": config.learning_rate}
            | {"noise": getattr(config, "embedding_noise", 0.0)}
            | ending(losses, steps)
            | {"log": losses}
        )

    done = once(folder / "trained.json", asdict(cell) | {"steps": steps}, make)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return done


def settings(lab: Lab, cell: Cell, steps: int) -> sft.SFTConfig | recon.ReconConfig:
    """How a cell is trained. SFT has the settings of the bundled model: Muon and noise get further in as many steps.

    Its log is a window of 64 steps, in which batches of all lengths come: otherwise their lengths would be its noise.
    """
    if cell.scheme == "recon":
        config = recon.ReconConfig(max_steps=steps, save_every=max(1, steps // 4), log_every=max(1, steps // 50))
        return replace(config, **cell.settings)
    config = sft.SFTConfig(
        batch_size=lab.budget.batch_size, gradient_accumulation_steps=1, optimizer="muon", learning_rate=2e-3,
        warmup_fraction=0.05, embedding_noise=0.6, lora_dropout=0.0, neftune_alpha=0.0, max_steps=steps,
        save_every=max(1, steps // 4), log_every=min(64, max(1, steps // 25)), bf16=fast_bfloat16(lab.device),
        compile=pays(steps),
    )  # fmt: skip
    return replace(config, **cell.settings)


def train_sft(lab: Lab, cell: Cell, config: sft.SFTConfig, folder: Path) -> list[dict]:
    tasks = lab.of(cell)
    offset = Adapter.from_pretrained(lab.loras / cell.offset) if config.offset != "none" else None
    hyperlora = sft.build(lab.adapted, lab.tokenizer, tasks, config, offset, lab.embedders[config.embedder])
    return sft.train(hyperlora, lab.adapted, lab.tokenizer, tasks, config, folder, resume=True)


def train_recon(lab: Lab, cell: Cell, config: recon.ReconConfig, folder: Path) -> list[dict]:
    tasks, library = lab.of(cell), library_of(lab, cell)
    hyperlora = recon.build(library, config, tasks, lab.embedders[MINILM], lab.device)
    return recon.train(hyperlora, library, config, folder, tasks, resume=True, device=lab.device)


def library_of(lab: Lab, cell: Cell) -> Library:
    names = {task.name for task in lab.of(cell)}
    return pack(lab.loras, lab.folder / "libraries" / f"{len(names)}.safetensors", names)


def equal_steps(lab: Lab, cell: Cell, folder: Path) -> int:
    """As many steps of reconstruction as fit the time that the other cell took, by the speed of a few."""
    seconds = read_json(lab.folder / "cells" / cell.equal_to / "trained.json", MAX_BYTES)["seconds"]
    shutil.rmtree(folder / "probe", ignore_errors=True)
    probe = settings(lab, cell, lab.budget.probe_steps)
    runtime = train_recon(lab, cell, probe, folder / "probe")[-1]["train_runtime"]
    shutil.rmtree(folder / "probe")
    return max(1, round(lab.budget.probe_steps * seconds / runtime))


# ---- measuring ----


def results(path: Path, of: Mapping[str, str], measure: Callable[[], list[dict]]) -> list[dict]:
    """The rows of a results file, which is made where it is missing or was measured of something else than `of`."""
    if not path.exists() or read_results(path)[1] != of:
        write_results(path, measure(), of)
    return read_results(path)[0]


def content(lab: Lab, *names: str) -> dict[str, str]:
    """What results of these cells rest on."""
    weights = {name: sorted((lab.folder / "cells" / name).glob("hyperlora*.safetensors")) for name in names}
    return {name: digest(*files) for name, files in weights.items()} | {"loras": digest(lab.loras)}


def measure_cell(lab: Lab, cell: Cell) -> list[dict]:
    """Rows as `training.evaluate` has them: the cell's adapters and, on trained tasks, the tasks' own LoRAs.

    On held-out tasks with unseen descriptions; on trained ones with all kinds, or with their numbers.
    """
    hyperlora = HyperLoRA.from_pretrained(lab.folder / "cells" / cell.name)
    reads, method = hyperlora.config.task_input == "text", f"HyperLoRA {hyperlora.config.head}"
    if reads:
        hyperlora.embedder = lab.embedders[hyperlora.config.embedder]
    numbers = [] if reads else library_of(lab, cell).tasks
    trials: list[tuple[str, str, Trial]] = []
    for split in cell.on:
        for task in lab.held_out if split == HELD_OUT else lab.of(cell)[: lab.budget.checked]:
            draw = Random(f"0 {task.name}")  # that of training.evaluate's first seed
            examples = draw.sample(task.test, min(lab.budget.examples, len(task.test)))
            plain = Trial(task, fitting(lab.adapted, lab.tokenizer, task, examples))
            if not plain.examples:
                continue
            if reads:
                for kind in KINDS if split == TRAINED else (UNSEEN,):
                    texts = pick_descriptions(task, kind, lab.of(cell), lab.budget.draws, draw)
                    made = generate(hyperlora, texts) if texts else []
                    trials += [(method, split, replace(plain, kind=kind, adapter=adapter)) for adapter in made]
            else:
                made = hyperlora.generate(embeddings=torch.eye(len(numbers))[[numbers.index(task.name)]])
                trials.append((method, split, replace(plain, adapter=made[0])))
            if split == TRAINED:
                own = Adapter.from_pretrained(lab.loras / task.name)
                trials.append((ORACLE, split, replace(plain, adapter=own)))
    scores = score(lab.adapted, lab.tokenizer, [trial for *_, trial in trials])
    cell_rows = defaultdict(list)
    for (method, split, trial), value in zip(trials, scores, strict=True):
        cell_rows[method, split, trial.kind, trial.task.name, len(trial.examples)].append(value)
    keys = "method", "split", "kind", "task", "examples"
    return [
        dict(zip(keys, key, strict=True))
        | {"seed": 0, "score": statistics.fmean(values), "descriptions": len(values) if key[2] != NO_DESCRIPTION else 0}
        for key, values in cell_rows.items()
    ]


def measure_table_2(lab: Lab) -> list[dict]:
    """Every method on the held-out tasks; "HyperLoRA M" is the first seed's."""
    hyperloras = {label: HyperLoRA.from_pretrained(lab.folder / "cells" / name) for label, name in TABLE_2.items()}
    for hyperlora in hyperloras.values():
        hyperlora.embedder = lab.embedders[MINILM]
    budget = lab.budget
    settings = evaluate.Settings(examples=budget.examples, descriptions=budget.draws, seeds=1)
    splits, adapters = {HELD_OUT: lab.held_out}, load_adapters(lab.loras)
    return evaluate.evaluate(lab.adapted, lab.tokenizer, splits, lab.tasks, hyperloras, adapters, settings)


def draw_figures(lab: Lab, all_cells: Sequence[Cell], found: Mapping[str, list[dict]], report: Path) -> dict[str, dict]:
    """Write the figures; gives their data. One that cannot be drawn has instead {"missing": why}."""
    budget, data = lab.budget, {}
    ladder = [cell for cell in all_cells if cell.scheme == "recon" and cell.name.endswith("-tasks")]
    folders = [lab.folder / "cells" / cell.name for cell in ladder]
    owned = [task for task in lab.held_out if (lab.loras / task.name).is_dir()] or lab.tasks
    targets, tasks = owned[: budget.targets], lab.tasks[: budget.compared]

    def figure_5() -> dict:
        hyperlora = HyperLoRA.from_pretrained(lab.folder / "cells" / "sft-M-0")
        hyperlora.embedder = lab.embedders[MINILM]
        return analysis.activations(hyperlora, lab.held_out[: budget.targets], lab.tasks)

    @cache
    def points() -> list[dict]:
        path = lab.folder / "cross-scores.json"
        rows = analysis.cross_scores(lab.adapted, lab.tokenizer, targets, tasks, lab.loras, path, budget.examples)
        return analysis.compare_loras(targets, tasks, lab.loras, lab.embedders[MINILM], rows)

    def compared(measures: Sequence[str]) -> dict:
        return analysis.against_descriptions(points(), measures)

    def bars(chosen: Mapping[str, tuple[str, ...]]) -> dict:
        return {label: statistics.fmean(scores(found, *names).values()) for label, names in chosen.items()}

    rungs = [cell.tasks for cell in all_cells if cell.scheme == "sft" and cell.tasks]
    full = seeds_of(found, "sft")  # a mean over them, as in the claims
    offsets = {"multi-task": full, "average": ("sft-M-average-offset",), "none": ("sft-M-no-offset",)}
    described = {str(n): (f"sft-M-{n}-descriptions",) for n in budget.fewer_descriptions}
    drawings: dict[str, tuple[Callable[[], dict], Callable[[dict], Figure]]] = {
        "figure-1": (
            lambda: bars({str(n): (f"sft-M-{n}-tasks",) for n in rungs} | {str(len(lab.tasks)): full}),
            lambda values: draw_bars(values, "tasks trained on"),
        ),
        "figure-3": (
            lambda: analysis.against_error(folders, [folder / "results.json" for folder in folders]),
            draw_against_error,
        ),
        "figure-4": (lambda: compared(["factors", "performance"]), draw_against_descriptions),
        "figure-5": (figure_5, draw_activations),
        "figure-6": (lambda: bars(offsets), lambda values: draw_bars(values, "offset")),
        "figure-10": (lambda: compared(["delta"]), draw_against_descriptions),
        "figure-12": (
            lambda: bars(described | {f"up to {budget.descriptions}": full}),
            lambda values: draw_bars(values, "descriptions of a task in training"),
        ),
    }
    for name, (measure, draw) in drawings.items():
        try:
            data[name] = measure()
            save_figure(report, name, data[name], draw(data[name]))
        except UserError as error:
            data[name] = {"missing": str(error)}
    return data


# ---- the command ----


@dataclass(frozen=True)
class Options:
    """Where things come from and go."""

    base: str = option("assets/mini/base", "the base model: folder or Hub id")
    tasks: str = option("runs/mini/tasks/trained", "folder of the tasks to train on")
    held_out: str = option("runs/mini/tasks/combination", "folder of the tasks to measure on")
    oracles: str | None = option(
        "runs/mini/tasks/oracle", "folder with training examples of held-out tasks, for their own LoRAs"
    )
    output: str = option("runs/reproduce", "folder for the work: LoRAs, cells, results")
    report: str = option("assets/mini/report", "folder for the report: Markdown and PNG")
    quick: bool = option(False, "a smoke run of few steps and tasks; all it writes is in OUTPUT/quick")
    device: str = option("cpu", "cpu or cuda")
    processes: int = option(1, "hypernetworks that are trained at a time, each with its part of the threads", least=1)


def prepare(options: Options, budget: Budget, embedder=None) -> tuple[Lab, list[Task]]:
    """What all cells share, and the held-out tasks with examples to train their own LoRAs on."""
    tasks = [task for task in load_tasks(options.tasks) if task.train and task.test]
    held_out = [task for task in load_tasks(options.held_out) if task.test][: budget.held_out]
    if len(tasks) < 2 or len(held_out) < 2:
        raise UserError(f"{options.tasks} and {options.held_out} must each hold two tasks with examples, or more.")
    tasks = Random(0).sample(tasks, min(budget.tasks, len(tasks)))
    if both := {task.name for task in tasks} & {task.name for task in held_out}:
        raise UserError(f"The task {min(both)!r} is trained on and held out: take it out of one of the two folders.")
    shown = sft.SFTConfig(max_descriptions=budget.descriptions)  # as many as any cell may draw from
    tasks = [replace(task, descriptions=sft.trained_descriptions(task, shown)) for task in tasks]
    wanted = {task.name for task in held_out}
    oracles = [t for t in load_tasks(options.oracles) if t.name in wanted and t.train] if options.oracles else []
    folder = Path(options.output)
    names = {"tasks": [task.name for task in tasks], "held_out": [task.name for task in held_out]}
    model, tokenizer = load_base(options.base, device=options.device)
    inputs = {"base": base_digest(model), "content": value_digest([asdict(t) for t in (*tasks, *held_out, *oracles)])}
    once(folder / "inputs.json", inputs | names | {"budget": asdict(budget)}, dict)
    embedders = {
        MINILM: Remembered(embedder or load_embedder(MINILM, device=options.device)),
        LAST_TOKEN: Remembered(load_embedder(LAST_TOKEN, base=(model, tokenizer))),
    }
    adapted = AdaptedModel(model, TARGET_MODULES, max_adapters=256)
    return Lab(adapted, tokenizer, tasks, held_out, embedders, budget, folder, options.device), oracles


def finish_cell(lab: Lab, cell: Cell) -> tuple[dict, list[dict]]:
    """Its trained.json and the rows of its results.json."""
    print(f"Cell {cell.name}", flush=True)
    trained = train_cell(lab, cell)
    path = lab.folder / "cells" / cell.name / "results.json"
    return trained, results(path, content(lab, cell.name), lambda: measure_cell(lab, cell))


def end_with_parent() -> None:
    """A process whose parent was killed would train on, in the folders of the run that is started next."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@cache
def own_lab(options: Options, budget: Budget, embedder) -> Lab:
    """That of a process of its own, which keeps it from cell to cell."""
    torch.set_num_threads(max(1, torch.get_num_threads() // options.processes))
    return prepare(options, budget, embedder)[0]


def finish_alone(options: Options, budget: Budget, embedder, cell: Cell) -> tuple[dict, list[dict]]:
    return finish_cell(own_lab(options, budget, embedder), cell)


def finish_together(options: Options, budget: Budget, embedder, every: Sequence[Cell]) -> dict[str, tuple]:
    """`finish_cell` of all cells by name, `processes` at a time; one that gets another's time waits for it."""
    waiting, running, finished = list(every), {}, {}
    context = get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, initializer=end_with_parent) as pool:
        try:
            while waiting or running:
                ready = [cell for cell in waiting if not cell.equal_to or cell.equal_to in finished]
                for cell in ready[: options.processes - len(running)]:
                    waiting.remove(cell)
                    running[pool.submit(finish_alone, options, budget, embedder, cell)] = cell
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finished[running.pop(future).name] = future.result()
        except BrokenProcessPool:
            raise UserError(
                "A process that trained a hypernetwork was killed, most likely for want of memory. What is done "
                "is kept: start again with the same command, and fewer --processes."
            ) from None
    return finished


def reproduce(options: Options, budget: Budget, embedder=None) -> list[Claim]:
    """Everything that is not done yet, and the report. embedder: instead of the sentence encoder."""
    lab, oracles = prepare(options, budget, embedder)
    train_plain(lab, oracles)
    every = cells(budget, len(lab.tasks))
    for cell in every:
        if cell.scheme == "recon":  # before processes share them
            library_of(lab, cell)
    if options.processes > 1:
        finished = finish_together(options, budget, embedder, every)
    else:
        finished = {cell.name: finish_cell(lab, cell) for cell in every}
    trained = {cell.name: finished[cell.name][0] for cell in every}
    found = {cell.name: finished[cell.name][1] for cell in every}
    found["table-2"] = results(
        lab.folder / "table-2.json", content(lab, *TABLE_2.values()), lambda: measure_table_2(lab)
    )
    report = Path(options.report)
    figures = draw_figures(lab, every, found, report)
    said = claims(budget.fewer_descriptions, found, figures)
    if not budget.decides:
        said = [replace(claim, held=None) for claim in said]
    plain = {"multi-task": budget.multi_task_steps, "own": budget.lora_steps}
    write_report(report, said, trained, found, figures, plain)
    print(f"{report / 'README.md'} says what held.", flush=True)
    return said


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    if options.quick:  # beside a full run, whose report stays
        folder = Path(options.output) / "quick"
        options = replace(options, output=str(folder), report=str(folder / "report"))
    reproduce(options, QUICK if options.quick else Budget())


if __name__ == "__main__":
    run(main)
