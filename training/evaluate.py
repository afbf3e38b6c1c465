"""Every way to answer a task, scored: the base alone, prompted or shown examples, the commonest answer, plain LoRAs,
Arrow, retrieval, HyperLoRA, oracles.

python -m training.evaluate --tasks DIR --base DIR --hyperlora DIR [--held_out DIR ..] [--adapters DIR] --output FILE

Beside the results lie the answers (.answers.jsonl): the same command goes on with them where it was killed.
"""

import itertools
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from hyperlora.adapted import AdaptedModel
from hyperlora.config import PromptStyle
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from training.parts.answers import Answers
from training.parts.arrow import Arrow
from training.parts.baselines import NearestLoRA, Retrieval, generate
from training.parts.kinds import KINDS, NO_DESCRIPTION, SEEN, UNSEEN, pick_descriptions
from training.parts.metrics import exact_match, rouge_l
from training.parts.options import option, parse, run
from training.parts.results import (
    FEW_SHOT,
    MAJORITY,
    MULTI_TASK,
    NEAREST,
    ORACLE,
    PROMPTED,
    check_output,
    paper_table,
    prompted,
    summary,
    summary_table,
    write_results,
    write_table,
)
from training.parts.scoring import Trial, chat_scores, fitting, fitting_trials, just_enough, mean_score, respond
from training.parts.sources import Sources
from training.tasks import Task, load_tasks

MAX_ADAPTER_BYTES = 2 * 2**30  # of generated adapters in memory at once
ROOM = 32  # tokens that a chat answer may say beside twice the output, which is then found in it


@dataclass
class Settings:
    """How much is measured."""

    examples: int = option(24, "test examples a task and seed", least=1)
    descriptions: int = option(3, "descriptions a task, kind and seed (the paper's tables average over three)", least=1)
    seeds: int = option(3, "evaluation seeds; each draws its own examples and descriptions", least=1)
    batch_size: int = option(256, "rows decoded together", least=1)
    shots: int = option(3, "training examples in the prompt of the few-shot rows; 0: no such rows", least=0)
    arrow_top_k: int = option(3, "LoRAs that Arrow routes a token to", least=1)
    arrow_temperature: float = option(1.0, "of the softmax over their scores", above=0)
    kinds: list[str] | None = option(None, f"kinds of description ({', '.join(KINDS)}); all by default")
    chat: bool = option(
        False,
        "measure answers as a person reads them: case and end marks aside, token F1 for tasks of long answers, and "
        "whether the answer is in what was said",
    )
    f1_above: int = option(30, "characters of a task's median answer above which --chat takes token F1", least=1)
    rouge_l: bool = option(False, "measure ROUGE-L beside exact match; takes longer, as answers are not cut short")
    max_new_tokens: int = option(256, "tokens of an answer, with --rouge_l or --chat", least=1)

    def __post_init__(self) -> None:
        if wrong := set(self.kinds or ()) - set(KINDS):
            raise UserError(f"There is no kind of description {min(wrong)!r}: choose among {', '.join(KINDS)}.")

    def limit(self, longest: int) -> int:
        """The most tokens of an answer, where the longest accepted output has so many."""
        if self.rouge_l:
            return self.max_new_tokens
        return min(self.max_new_tokens, 2 * longest + ROOM) if self.chat else just_enough(longest)


class Method(NamedTuple):
    """Trials that are answered in one way; `arrow`, where there is one, routes them."""

    name: str
    trials: list[Trial]
    arrow: Arrow | None = None


def evaluate(
    adapted: AdaptedModel,
    tokenizer,
    splits: Mapping[str, Sequence[Task]],
    trained: Sequence[Task],
    hyperloras: Mapping[str, HyperLoRA],
    adapters: Mapping[str, Adapter],
    settings: Settings | None = None,
    saved: Answers | None = None,
) -> list[dict]:
    """Score every method on every split's `test` examples; one row a method, split, kind of description, task and seed.

    splits: name -> tasks, those that were trained on and those that were not. trained: the tasks that the hypernetworks
    were trained on; seen are the descriptions that all that read some were trained on. hyperloras: a label -> the
    checkpoint; the first one that reads descriptions is also measured with the description in the prompt, and gives
    retrieval its adapters; one that numbers its tasks is measured on them alone, in the order of `trained` where it
    says no other. adapters: "multi_task", "average" and, by task name, a task's own; those of `trained` are the library
    of Arrow and of the nearest task's LoRA. What was trained with the description in the prompt is measured so alone,
    and what was trained with either is measured with the input alone and, as "METHOD, prompted", with both. What is
    absent is not measured. saved: answers that an earlier call left, which are not decoded again.

    A row: {"method", "split", "kind", "task", "seed", "score", "descriptions", "examples"}, the score (exact match) a
    mean over the descriptions; "rouge_l" where the settings ask for it; with `chat` the scores of `chat_scores`.
    """
    settings, saved = settings or Settings(), saved or Answers()
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
            drawn = _draw(adapted, tokenizer, tasks, trained, settings, seed)
            plain = [Trial(task, examples, shots=shots) for task, examples, _, shots in drawn]
            described = [
                Trial(task, examples, kind, text)
                for task, examples, texts, _ in drawn
                for kind in settings.kinds or KINDS
                for text in texts[kind]
            ]
            for method in _methods(plain, described, trained, hyperloras, adapters, arrow, nearest):
                rows += _rows(adapted, tokenizer, method, split, seed, settings, saved)
                own = [row for row in rows if (row["seed"], row["split"], row["method"]) == (seed, split, method.name)]
                means = ", ".join(f"{entry['kind']} {entry['mean']:.3f}" for entry in summary(own))
                print(f"seed {seed}, {split}, {method.name}: {means}", flush=True)
    return rows


def _rows(
    adapted: AdaptedModel, tokenizer, method: Method, split: str, seed: int, settings: Settings, saved: Answers
) -> list[dict]:
    """One row for each task and kind of description among the trials."""
    trials = fitting_trials(adapted, tokenizer, method.trials)
    if method.name == MAJORITY:
        answers = [[_commonest(trial.task)] * len(trial.examples) for trial in trials]
    else:
        router = method.arrow.digest if method.arrow else ""
        with method.arrow.use() if method.arrow else nullcontext():
            answers = respond(adapted, tokenizer, trials, settings.batch_size, settings.limit, saved, router)
    saved.forget_adapters()
    cells: dict[tuple[str, str], list[tuple[Trial, list[str]]]] = defaultdict(list)
    for trial, texts in zip(trials, answers, strict=True):
        cells[trial.task.name, trial.kind].append((trial, texts))
    rows = []
    for (task, kind), cell in cells.items():
        row = {"method": method.name, "split": split, "kind": kind, "task": task, "seed": seed}
        if settings.chat:
            scores = [chat_scores(*pair, settings.f1_above) for pair in cell]
            row |= {name: statistics.fmean(each[name] for each in scores) for name in scores[0]}
        else:
            row["score"] = statistics.fmean(mean_score(exact_match, *pair) for pair in cell)
        row["descriptions"] = len(cell) if kind != NO_DESCRIPTION else 0
        row["examples"] = len(cell[0][0].examples)
        if settings.rouge_l:
            row["rouge_l"] = statistics.fmean(mean_score(rouge_l, *pair) for pair in cell)
        rows.append(row)
    return rows


def _commonest(task: Task) -> str:
    """The answer that most of the task's training examples have."""
    return Counter(example["output"] for example in task.train).most_common(1)[0][0]


def _draw(
    adapted: AdaptedModel, tokenizer, tasks: Sequence[Task], trained: Sequence[Task], settings: Settings, seed: int
) -> list[tuple]:
    """(task, examples, kind -> descriptions, shots) of one seed; the same draw whatever the other tasks are."""
    drawn = []
    for task in tasks:
        if task.test:
            draw = random.Random(f"{seed} {task.name}")
            examples = draw.sample(task.test, min(settings.examples, len(task.test)))
            texts = {kind: pick_descriptions(task, kind, trained, settings.descriptions, draw) for kind in KINDS}
            if not (examples := fitting(adapted, tokenizer, task, examples)):
                continue
            asked = {example["input"] for example in examples}
            pool = [example for example in task.train if example["input"] not in asked]
            drawn.append((task, examples, texts, draw.sample(pool, min(settings.shots, len(pool)))))
    return drawn


def forms(style: str) -> list[PromptStyle]:
    """The prompts that what was trained with this style is asked with."""
    return ["input", "description_input"] if style == "either" else [style]


def _methods(
    plain: Sequence[Trial],
    described: Sequence[Trial],
    trained: Sequence[Task],
    hyperloras: Mapping[str, HyperLoRA],
    adapters: Mapping[str, Adapter],
    arrow: Arrow | None,
    nearest: NearestLoRA | None,
) -> Iterator[Method]:
    """One after another, so that few generated adapters are in memory at a time; none without trials.

    A method with many adapters comes in several parts, each with all trials of its tasks.
    """
    readers = {label: h for label, h in hyperloras.items() if h.config.task_input == "text"}
    first_label, first = next(iter(readers.items()), (None, None))
    aligned = [trial for trial in described if trial.kind in (SEEN, UNSEEN)]
    simple = [replace(trial, shots=()) for trial in plain]
    shots = {trial.task.name: trial.shots for trial in plain}

    def name_of(method: str, style: str, form: PromptStyle) -> str:
        return prompted(method) if style != form != "input" else method

    def generated(
        method: str, make: Callable[[list[str]], list[Adapter]], style: str, some: HyperLoRA, form: PromptStyle
    ) -> Iterator[Method]:
        """With what `make` makes of each description, in parts; style: what that is trained with."""
        size = 4 * some.rank * some.config.num_layers * sum(map(sum, some.config.target_modules.values()))
        for part in _parts(aligned if style != form != "input" else described, MAX_ADAPTER_BYTES // size):
            made = make([trial.description for trial in part])
            trials = [replace(trial, adapter=a, style=form) for trial, a in zip(part, made, strict=True)]
            yield Method(name_of(method, style, form), trials)

    def asked(form: PromptStyle) -> list[Trial]:
        """The trials of what reads descriptions in the prompt, if at all."""
        return simple if form == "input" else [replace(trial, style=form) for trial in aligned]

    def with_lora(method: str, adapter: Adapter | None, name: str | None = None) -> Iterator[Method]:
        for form in forms(adapter.prompt_style) if adapter else ():
            trials = [replace(t, adapter=adapter) for t in asked(form) if name in (None, t.task.name)]
            yield Method(name_of(method, adapter.prompt_style, form), trials)

    def every() -> Iterator[Method]:
        yield Method("base", simple)
        yield Method(PROMPTED, asked("description_input"))
        yield Method(FEW_SHOT, [trial for trial in plain if trial.shots])
        shown = (replace(trial, shots=shots[trial.task.name]) for trial in asked("description_input"))
        yield Method(prompted(FEW_SHOT), [trial for trial in shown if trial.shots])
        yield Method(MAJORITY, [trial for trial in simple if trial.task.train])
        for name, method in (("multi_task", MULTI_TASK), ("average", "average LoRA")):
            yield from with_lora(method, adapters.get(name))
        for form in forms(arrow.prompt_style) if arrow else ():
            yield Method(name_of("Arrow routing", arrow.prompt_style, form), asked(form), arrow)
        for form in forms(arrow.prompt_style) if nearest else ():  # both choose in the same library
            yield from generated(NEAREST, nearest.generate, arrow.prompt_style, first, form)
        if first and first.descriptions:  # an imported one has none
            for form in forms(first.config.prompt_style):
                yield from generated("retrieval", Retrieval(first).generate, first.config.prompt_style, first, form)
        for label, hyperlora in hyperloras.items():
            if label in readers:
                style = hyperlora.config.prompt_style
                for form in forms(style):
                    yield from generated(label, partial(generate, hyperlora), style, hyperlora, form)
            else:
                yield Method(label, _numbered(simple, trained, hyperlora))
        if first and first.config.prompt_style == "input":
            yield from generated(first_label, partial(generate, first), "input", first, "description_input")
        own: dict[str, list[Trial]] = defaultdict(list)
        for name in dict.fromkeys(trial.task.name for trial in simple):
            for method in with_lora(ORACLE, adapters.get(name), name):
                own[method.name] += method.trials
        yield from (Method(name, trials) for name, trials in own.items())

    yield from (method for method in every() if method.trials)


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
    saved = Answers(Path(options.output).with_suffix(".answers.jsonl"), options.digest(adapted.model))
    rows = evaluate(adapted, tokenizer, splits, trained, hyperloras, adapters, options, saved)
    metrics = {"Exact match": "score"}
    if options.chat:
        metrics = {"Exact match, or token F1 of long answers": "score", "The answer is in it": "contains"}
    metrics |= {"ROUGE-L": "rouge_l"} if options.rouge_l else {}
    for name, metric in metrics.items():
        print(f"{name}\n\n{summary_table(rows, metric)}")
    write_results(options.output, rows, {field.name: getattr(options, field.name) for field in fields(Settings)})
    tables = [f"{name}, per cent\n\n{paper_table(rows, metric)}" for name, metric in metrics.items()]
    write_table(options.output, "\n".join(tables))


if __name__ == "__main__":
    run(main)
