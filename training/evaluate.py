"""Every way to answer a task, scored: the base alone, prompted or shown examples, plain LoRAs, Arrow, retrieval,
HyperLoRA, oracles.

python -m training.evaluate --tasks DIR --base DIR --hyperlora DIR [--held_out DIR ..] [--adapters DIR] --output FILE
"""

import itertools
import json
import random
import statistics
import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from hyperlora.adapted import AdaptedModel
from hyperlora.base import Precision, context_length, load_base, precision
from hyperlora.config import PromptStyle
from hyperlora.embedder import LAST_TOKEN, load_embedder
from hyperlora.errors import UserError
from hyperlora.files import write_atomic, writing
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from hyperlora.prompt import encode_chats, encode_texts, use_trained_template, with_description
from training.arrow import Arrow
from training.decode import decode
from training.lora import TARGET_MODULES, load_adapters
from training.metrics import accepted, exact_match, rouge_l
from training.options import option, parse, run
from training.tables import MULTI_TASK, NEAREST, ORACLE, PROMPTED, paper_table
from training.tasks import Example, Task, encode_prompts, load_tasks

# Kinds of description (Table 5). A task that no stage trained on has unseen descriptions only.
SEEN, UNSEEN, OTHER, RANDOM, NO_DESCRIPTION = "seen", "unseen", "another task's", "random string", "none"
KINDS = (SEEN, UNSEEN, OTHER, RANDOM)

MAX_ADAPTER_BYTES = 2 * 2**30  # of generated adapters in memory at once


@torch.no_grad()
def answer(
    adapted: AdaptedModel,
    tokenizer,
    prompts: Sequence[list[int]],
    adapters: Sequence[Adapter | None],
    max_new_tokens: int | Sequence[int] = 64,
    batch_size: int = 256,
) -> list[str]:
    """Greedy answers to token ids of prompts, each with its own adapter or none, stripped of surrounding space.

    Rows of like length share a forward, whatever their adapters. `max_new_tokens` may be given for each row; a row's
    answer is cut there or later.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    answers = [""] * len(prompts)
    by_adapter: dict[int, list[int]] = defaultdict(list)
    for row, adapter in enumerate(adapters):
        by_adapter[id(adapter)].append(row)
    groups = list(by_adapter.values())
    for first in range(0, len(groups), adapted.max_adapters):  # as many adapters as there are slots
        part = groups[first : first + adapted.max_adapters]
        slots = {}
        for rows in part:
            adapter = adapters[rows[0]]
            slots[id(adapter)] = None if adapter is None else adapted.load(adapter)
        order = sorted((row for rows in part for row in rows), key=lambda row: (limits[row], len(prompts[row])))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            with adapted.use([slots[id(adapters[row])] for row in rows]):
                found = decode(adapted.model, tokenizer, [prompts[r] for r in rows], max(limits[r] for r in rows))
            texts = tokenizer.batch_decode(found, skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text.strip()
        for slot in slots.values():
            if slot is not None:
                adapted.unload(slot)
    return answers


@dataclass
class Trial:
    """A task's examples answered in one way."""

    task: Task
    examples: Sequence[Example]
    kind: str = NO_DESCRIPTION
    description: str | None = None
    adapter: Adapter | None = None
    style: PromptStyle = "input"  # whether the description is in the prompt too
    shots: Sequence[Example] = ()  # examples in front of the prompt, as turns of the chat


def respond(
    adapted: AdaptedModel, tokenizer, trials: Sequence[Trial], batch_size: int = 256, max_new_tokens: int | None = None
) -> list[list[str]]:
    """Answers to each trial's examples, all trials in shared batches.

    An answer is cut after `max_new_tokens`, or, with None, where it is longer than every accepted output: an exact
    match needs no more of it. Of a trial's shots the first are left out where the context is too short for all.
    """
    examples = [(trial, example) for trial in trials for example in trial.examples]
    texts = [with_description(trial.description, example["input"], trial.style) for trial, example in examples]
    if not examples:
        return [[] for _ in trials]
    outputs = [accepted(example) for _, example in examples]
    flat = [" " + output for part in outputs for output in part]  # with the space that some templates put there
    lengths = map(len, encode_texts(tokenizer, flat))
    limits = [max(itertools.islice(lengths, len(part))) + 2 for part in outputs]
    if max_new_tokens is not None:
        limits = [max_new_tokens] * len(limits)
    prompts = encode_prompts(tokenizer, texts)
    for row, (trial, _) in enumerate(examples):
        if trial.shots:
            longest = context_length(adapted.model) - limits[row]
            prompts[row] = _with_shots(tokenizer, trial.shots, texts[row], longest) or prompts[row]
    answers = iter(answer(adapted, tokenizer, prompts, [trial.adapter for trial, _ in examples], limits, batch_size))
    return [list(itertools.islice(answers, len(trial.examples))) for trial in trials]


def _with_shots(tokenizer, shots: Sequence[Example], text: str, longest: int) -> list[int] | None:
    """The chat's token ids with as many of the last shots as fit in `longest`; None where not even one does."""
    for first in range(len(shots)):
        turns = [(shot["input"], shot["output"]) for shot in shots[first:]]
        chat = [{"role": r, "content": t} for turn in turns for r, t in zip(("user", "assistant"), turn, strict=True)]
        chat.append({"role": "user", "content": text})
        [ids] = encode_chats(tokenizer, [chat])
        if len(ids) <= longest:
            return ids
    return None


def score(adapted: AdaptedModel, tokenizer, trials: Sequence[Trial], batch_size: int = 256) -> list[float]:
    """Exact match of each trial, 0 to 1, a mean over its examples; all trials are answered in shared batches."""
    return [
        _mean(exact_match, trial, texts)
        for trial, texts in zip(trials, respond(adapted, tokenizer, trials, batch_size), strict=True)
    ]


def _mean(metric, trial: Trial, answers: Sequence[str]) -> float:
    return statistics.fmean(
        metric(text, accepted(example)) for text, example in zip(answers, trial.examples, strict=True)
    )


@dataclass
class Settings:
    """How much is measured."""

    examples: int = option(24, "test examples a task and seed", least=1)
    descriptions: int = option(3, "descriptions a task, kind and seed (the paper's tables average over three)", least=1)
    seeds: int = option(3, "evaluation seeds; each draws its own examples and descriptions", least=1)
    batch_size: int = option(256, "rows decoded together", least=1)
    shots: int = option(3, "training examples in the prompt of the few-shot row; 0: no such row", least=0)
    arrow_top_k: int = option(3, "LoRAs that Arrow routes a token to", least=1)
    arrow_temperature: float = option(1.0, "of the softmax over their scores", above=0)
    rouge_l: bool = option(False, "measure ROUGE-L beside exact match; takes longer, as answers are not cut short")
    max_new_tokens: int = option(256, "tokens of an answer, where ROUGE-L is measured", least=1)


def random_strings(count: int, draw: random.Random) -> list[str]:
    """`count` strings of 10 to 40 random letters and digits (App. A.4)."""
    letters = string.ascii_letters + string.digits
    return ["".join(draw.choices(letters, k=draw.randint(10, 40))) for _ in range(count)]


def pick_descriptions(task: Task, kind: str, trained: Sequence[Task], count: int, draw: random.Random) -> list[str]:
    """Up to `count` descriptions of one kind; another task's, where asked for, is a trained task's. Maybe none."""
    seen = next((other.descriptions for other in trained if other.name == task.name), None)
    if kind == RANDOM:
        return random_strings(count, draw)
    if kind == OTHER:
        others = [other for other in trained if other.name != task.name and other.descriptions]
        return [draw.choice(draw.choice(others).descriptions) for _ in range(count)] if others else []
    if kind == SEEN:
        pool = seen or []
    else:
        pool = task.eval_descriptions if seen is not None else task.descriptions + task.eval_descriptions
    return draw.sample(pool, min(count, len(pool)))


class NearestLoRA:
    """The own LoRA of the trained task with the nearest description: retrieval from a library."""

    def __init__(self, embedder, tasks: Sequence[Task], adapters: Mapping[str, Adapter]):
        """embedder: an object with `embed`. Tasks without a LoRA in `adapters`, by name, cannot be found."""
        found = [task for task in tasks if task.name in adapters]
        self.embedder = embedder
        self.adapters = [adapters[task.name] for task in found for _ in task.descriptions]
        self.embeddings = embedder.embed([text for task in found for text in task.descriptions])
        if not self.adapters:
            raise UserError("None of the trained tasks with a LoRA has a description to be found by.")

    def generate(self, texts: list[str]) -> list[Adapter]:
        cosine = F.normalize(self.embedder.embed(texts), dim=-1) @ F.normalize(self.embeddings, dim=-1).T
        return [self.adapters[i] for i in cosine.argmax(-1).tolist()]


def generate(hyperlora: HyperLoRA, texts: list[str]) -> list[Adapter]:
    """As `HyperLoRA.generate`, for what tasks are trained on too, such as a definition longer than the page takes."""
    return hyperlora.generate(embeddings=hyperlora.embedder.embed(texts))


class Retrieval:
    """The hypernetwork's adapter of the training description that is nearest, instead of the description's own."""

    def __init__(self, hyperlora: HyperLoRA):
        self.hyperlora = hyperlora

    def generate(self, texts: list[str]) -> list[Adapter]:
        nearest = self.hyperlora.nearest(self.hyperlora.embedder.embed(texts))
        return generate(self.hyperlora, [description for description, _ in nearest])


def evaluate(
    adapted: AdaptedModel,
    tokenizer,
    splits: Mapping[str, Sequence[Task]],
    trained: Sequence[Task],
    hyperloras: Mapping[str, HyperLoRA],
    adapters: Mapping[str, Adapter],
    settings: Settings | None = None,
) -> list[dict]:
    """Score every method on every split's `test` examples; one row a method, split, kind of description, task and seed.

    splits: name -> tasks, those that were trained on and those that were not. trained: the tasks that the hypernetworks
    were trained on; seen are the descriptions that all that read some were trained on. hyperloras: a label -> the
    checkpoint; the first one that reads descriptions is also measured with the description in the prompt, and gives
    retrieval its adapters; one that was trained with the description in the prompt is measured so alone; one that
    numbers its tasks is measured on them alone, in the order of `trained` where it says no other. adapters:
    "multi_task", "average" and, by task name, a task's own; those of `trained` are the library of Arrow and of the
    nearest task's LoRA. What is absent is not measured. A row: {"method", "split", "kind", "task", "seed", "score",
    "descriptions", "examples"}, the score (exact match) a mean over the descriptions, and "rouge_l" where the settings
    ask for it.
    """
    settings = settings or Settings()
    readers = [hyperlora for hyperlora in hyperloras.values() if hyperlora.config.task_input == "text"]
    library = [adapters[task.name] for task in trained if task.name in adapters]
    arrow = Arrow(adapted, library, settings.arrow_top_k, settings.arrow_temperature) if library else None
    nearest = NearestLoRA(readers[0].embedder, trained, adapters) if library and readers else None
    for reader in readers:  # seen is what it was trained on: not all that a task has, where that is more
        if known := set(reader.descriptions):
            kept = ([text for text in task.descriptions if text in known] for task in trained)
            trained = [replace(task, descriptions=texts) for task, texts in zip(trained, kept, strict=True)]
    rows = []
    for seed in range(settings.seeds):
        for split, tasks in splits.items():
            drawn = _draw(tasks, trained, settings, seed)
            plain = [Trial(task, examples, shots=shots) for task, examples, _, shots in drawn]
            described = [
                Trial(task, examples, kind, text)
                for task, examples, texts, _ in drawn
                for kind in KINDS
                for text in texts[kind]
            ]
            for method, trials in _methods(plain, described, trained, hyperloras, adapters, arrow, nearest):
                rows += _rows(adapted, tokenizer, method, split, seed, trials, settings)
                own = [row for row in rows if (row["seed"], row["split"], row["method"]) == (seed, split, method)]
                means = ", ".join(f"{entry['kind']} {entry['mean']:.3f}" for entry in summary(own))
                print(f"seed {seed}, {split}, {method}: {means}", flush=True)
    return rows


def _rows(
    adapted: AdaptedModel, tokenizer, method: str, split: str, seed: int, trials: Sequence[Trial], settings: Settings
) -> list[dict]:
    """One row for each task and kind of description among the trials."""
    answers = respond(
        adapted, tokenizer, trials, settings.batch_size, settings.max_new_tokens if settings.rouge_l else None
    )
    cells: dict[tuple[str, str], list[tuple[Trial, list[str]]]] = defaultdict(list)
    for trial, texts in zip(trials, answers, strict=True):
        cells[trial.task.name, trial.kind].append((trial, texts))
    rows = []
    for (task, kind), cell in cells.items():
        row = {
            "method": method,
            "split": split,
            "kind": kind,
            "task": task,
            "seed": seed,
            "score": statistics.fmean(_mean(exact_match, *pair) for pair in cell),
            "descriptions": len(cell) if kind != NO_DESCRIPTION else 0,
            "examples": len(cell[0][0].examples),
        }
        if settings.rouge_l:
            row["rouge_l"] = statistics.fmean(_mean(rouge_l, *pair) for pair in cell)
        rows.append(row)
    return rows


def _draw(tasks: Sequence[Task], trained: Sequence[Task], settings: Settings, seed: int) -> list[tuple]:
    """(task, examples, kind -> descriptions, shots) of one seed; the same draw whatever the other tasks are."""
    drawn = []
    for task in tasks:
        if task.test:
            draw = random.Random(f"{seed} {task.name}")
            examples = draw.sample(task.test, min(settings.examples, len(task.test)))
            texts = {kind: pick_descriptions(task, kind, trained, settings.descriptions, draw) for kind in KINDS}
            asked = {example["input"] for example in examples}
            pool = [example for example in task.train if example["input"] not in asked]
            drawn.append((task, examples, texts, draw.sample(pool, min(settings.shots, len(pool)))))
    return drawn


def _methods(
    plain: Sequence[Trial],
    described: Sequence[Trial],
    trained: Sequence[Task],
    hyperloras: Mapping[str, HyperLoRA],
    adapters: Mapping[str, Adapter],
    arrow: Arrow | None,
    nearest: NearestLoRA | None,
) -> Iterator[tuple[str, list[Trial]]]:
    """(method, trials) one after another, so that few generated adapters are in memory at a time; none without trials.

    A method with many adapters comes in several parts, each with all trials of its tasks.
    """
    readers = {label: h for label, h in hyperloras.items() if h.config.task_input == "text"}
    first_label, first = next(iter(readers.items()), (None, None))
    aligned = [trial for trial in described if trial.kind in (SEEN, UNSEEN)]

    def as_trained(hyperlora: HyperLoRA) -> list[Trial]:
        return [replace(trial, style=hyperlora.config.prompt_style) for trial in described]

    def generated(
        method: str, make: Callable[[list[str]], list[Adapter]], hyperlora: HyperLoRA, trials: Sequence[Trial]
    ) -> Iterator[tuple[str, list[Trial]]]:
        config = hyperlora.config
        size = 4 * hyperlora.rank * config.num_layers * sum(map(sum, config.target_modules.values()))
        for part in _parts(trials, MAX_ADAPTER_BYTES // size):
            made = make([trial.description for trial in part])
            yield method, [replace(trial, adapter=a) for trial, a in zip(part, made, strict=True)]

    simple = [replace(trial, shots=()) for trial in plain]

    def prompted_as(style: PromptStyle) -> list[Trial]:
        """The trials under the prompts that plain LoRAs were trained with."""
        return simple if style == "input" else [replace(trial, style=style) for trial in aligned]

    def with_lora(adapter: Adapter | None, name: str | None = None) -> list[Trial]:
        trials = prompted_as(adapter.prompt_style) if adapter else []
        return [replace(trial, adapter=adapter) for trial in trials if name in (None, trial.task.name)]

    def every() -> Iterator[tuple[str, list[Trial]]]:
        yield "base", simple
        prompted = [replace(trial, style="description_input") for trial in aligned]
        yield PROMPTED, prompted
        yield "base, few-shot", [trial for trial in plain if trial.shots]
        for name, method in (("multi_task", MULTI_TASK), ("average", "average LoRA")):
            yield method, with_lora(adapters.get(name))
        if arrow:
            with arrow.use():
                # what is answered before the next method is asked for is routed
                yield "Arrow routing", prompted_as(arrow.prompt_style)
        if nearest:
            for method, trials in generated(NEAREST, nearest.generate, first, described):
                yield method, [replace(trial, style=trial.adapter.prompt_style) for trial in trials]
        if first and first.descriptions:  # an imported one has none
            yield from generated("retrieval", Retrieval(first).generate, first, as_trained(first))
        for label, hyperlora in hyperloras.items():
            if label in readers:
                yield from generated(label, partial(generate, hyperlora), hyperlora, as_trained(hyperlora))
            else:
                yield label, _numbered(simple, trained, hyperlora)
        if first and first.config.prompt_style == "input":
            yield from generated(f"{first_label}, prompted", partial(generate, first), first, prompted)
        names = dict.fromkeys(trial.task.name for trial in simple)
        yield ORACLE, [trial for name in names for trial in with_lora(adapters.get(name), name)]

    for method, trials in every():
        if trials:
            yield method, trials


def _parts(trials: Iterable[Trial], most: int) -> Iterator[list[Trial]]:
    """The trials in parts of at most `most`, but never one task's in two parts."""
    part: list[Trial] = []
    for _, group in itertools.groupby(trials, key=lambda trial: trial.task.name):
        own = list(group)
        if part and len(part) + len(own) > most:
            yield part
            part = []
        part += own
    if part:
        yield part


def _numbered(plain: Sequence[Trial], trained: Sequence[Task], hyperlora: HyperLoRA) -> list[Trial]:
    """The trials of trained tasks, with the adapters of a hypernetwork whose input is a task's number."""
    names = hyperlora.config.task_names or [task.name for task in trained]
    numbers = {name: i for i, name in enumerate(names)}
    if len(numbers) != hyperlora.config.num_tasks:
        raise UserError(
            f"The hypernetwork {hyperlora.name} numbers {hyperlora.config.num_tasks} tasks, and there are "
            f"{len(numbers)}: give the folder of tasks that it was trained on."
        )
    found = [trial for trial in plain if trial.task.name in numbers]
    if not found:
        return []
    ids = torch.tensor([numbers[trial.task.name] for trial in found])
    inputs = torch.eye(len(numbers))[ids] if hyperlora.config.task_input == "one_hot" else ids
    made = hyperlora.generate(embeddings=inputs)
    return [replace(trial, adapter=a) for trial, a in zip(found, made, strict=True)]


def summary(rows: Sequence[dict], metric: str = "score") -> list[dict]:
    """One entry a method, kind and split: the mean over tasks and its standard deviation over seeds."""
    cells: dict[tuple, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    tasks: dict[tuple, set[str]] = defaultdict(set)
    for row in rows:
        cell = row["method"], row["kind"], row["split"]
        cells[cell][row["seed"]].append(row[metric])
        tasks[cell].add(row["task"])
    entries = []
    for (method, kind, split), seeds in cells.items():
        means = [statistics.fmean(scores) for scores in seeds.values()]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        entry = {"method": method, "kind": kind, "split": split, "mean": statistics.fmean(means), "spread": spread}
        entries.append(entry | {"tasks": len(tasks[method, kind, split])})
    return entries


def markdown_table(rows: Sequence[dict], metric: str = "score") -> str:
    """Methods and kinds of description down, splits across; mean over tasks ± spread over seeds."""
    entries = summary(rows, metric)
    splits = list(dict.fromkeys(e["split"] for e in entries))
    lines = ["| method | description | " + " | ".join(splits) + " |", "| --- | --- |" + " --- |" * len(splits)]
    for method, kind in dict.fromkeys((e["method"], e["kind"]) for e in entries):
        cells = {e["split"]: e for e in entries if (e["method"], e["kind"]) == (method, kind)}
        texts = [f"{cells[s]['mean']:.2f} ± {cells[s]['spread']:.2f}" if s in cells else "" for s in splits]
        lines.append(f"| {method} | {kind} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def save_results(path: str | Path, rows: Sequence[dict], settings: Settings) -> None:
    """{"settings", "summary", "rows"} as one JSON file."""
    kept = {field.name: getattr(settings, field.name) for field in fields(Settings)}
    write_results(path, rows, kept)


def write_results(path: str | Path, rows: Sequence[dict], settings: Mapping[str, object]) -> None:
    """As `save_results`, with any settings."""
    data = {"settings": settings, "summary": summary(rows), "rows": list(rows)}
    _write(Path(path), json.dumps(data, ensure_ascii=False) + "\n")


def write_table(path: str | Path, text: str) -> None:
    """Beside the results in `path`, as Markdown."""
    _write(Path(path).with_suffix(".md"), text)


def _write(path: Path, text: str) -> None:
    with writing(path, "free some space or choose another output"):
        write_atomic(path, text.encode())


def check_output(path: str | Path) -> None:
    """Make the folder of the results. UserError where that cannot be: before hours of measuring, not after them."""
    path = Path(path)
    if path.suffix == ".md" or path.is_dir():
        raise UserError(f"{path} cannot hold the results: give --output a file, such as results.json.")
    with writing(path, "choose another output"):
        path.parent.mkdir(parents=True, exist_ok=True)


@dataclass(kw_only=True)
class Sources:
    """What is measured."""

    base: str = option(help="the base model: folder or Hub id")
    hyperlora: list[str] | None = option(None, "checkpoints; the first is also measured with a prompt")
    adapters: str | None = option(None, "folder of plain LoRAs as training.lora writes it")
    base_dtype: Precision = option("float32", "how the base is held")
    device: str = option("cpu", "cpu, cuda, ...")

    def load(self) -> tuple[AdaptedModel, object, dict[str, HyperLoRA], dict[str, Adapter]]:
        """The base with its tokenizer, label -> checkpoint, and name -> plain LoRA.

        The tokenizer has the chat template that the checkpoints were trained with; all rows are measured under it.
        """
        hyperloras: dict[str, HyperLoRA] = {}
        for path in self.hyperlora or []:
            checkpoint = HyperLoRA.from_pretrained(path)
            label = f"HyperLoRA {checkpoint.config.head}"
            hyperloras[label if label not in hyperloras else f"{label} ({path})"] = checkpoint
        adapters = load_adapters(self.adapters) if self.adapters else {}
        targets = [hyperlora.config.target_modules for hyperlora in hyperloras.values()]
        targets += [list(adapter.weights) for adapter in adapters.values()]
        model, tokenizer = load_base(self.base, device=self.device, **precision(self.base_dtype))
        use_trained_template(tokenizer, *(hyperlora.config for hyperlora in hyperloras.values()))
        for hyperlora in hyperloras.values():
            if hyperlora.config.task_input == "text" and hyperlora.config.embedder == LAST_TOKEN:
                hyperlora.embedder = load_embedder(LAST_TOKEN, base=(model, tokenizer))
        return AdaptedModel(model, targets[0] if targets else TARGET_MODULES), tokenizer, hyperloras, adapters


@dataclass(kw_only=True)
class Options(Settings, Sources):
    """What `python -m training.evaluate` takes beside the settings."""

    tasks: str = option(help="folder of the tasks that were trained on")
    output: str = option(help="file for the results (JSON); the table goes beside it (.md) and to standard output")
    held_out: list[str] | None = option(None, "folders of tasks never trained on, each a split")


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    check_output(options.output)
    trained = load_tasks(options.tasks)
    splits = {"trained tasks": trained}
    for folder in options.held_out or []:
        name = Path(folder).absolute().name
        if name in splits:
            raise UserError(f"There are two splits {name!r}: --held_out's folders each need a name of their own.")
        splits[name] = load_tasks(folder)
    if not any(task.test for tasks in splits.values() for task in tasks):
        raise UserError('None of these tasks has "test" examples: there is nothing to measure.')
    adapted, tokenizer, hyperloras, adapters = options.load()
    rows = evaluate(adapted, tokenizer, splits, trained, hyperloras, adapters, options)
    metrics = {"Exact match": "score"} | ({"ROUGE-L": "rouge_l"} if options.rouge_l else {})
    for name, metric in metrics.items():
        print(f"{name}\n\n{markdown_table(rows, metric)}")
    save_results(options.output, rows, options)
    tables = [f"{name}, per cent\n\n{paper_table(rows, metric)}" for name, metric in metrics.items()]
    write_table(options.output, "\n".join(tables))


if __name__ == "__main__":
    run(main)
