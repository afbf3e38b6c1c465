"""What the hypernetwork over SmolLM2 is trained on and measured on, and what is kept out of the training.

Four sources: a folder of real tasks (with `held_out.txt`, a name and a kind a line, of tasks that are never trained
on), the mini model's text suite, tasks of our own, and open requests whose answers are the base's own.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import torch.nn.functional as F

from hyperlora.config import HyperLoRAConfig, read_json
from hyperlora.embedder import load_embedder
from hyperlora.errors import UserError
from training.mini.splits import examples
from training.mini.suite import suite
from training.parts.requests import everyday_requests
from training.parts.typed import END_MARKS
from training.smollm2.own import own_tasks
from training.tasks import MAX_FILE_BYTES, Example, Task, load_tasks

HELD_OUT, DESCRIPTIONS = "held_out.txt", "descriptions.json"
TEXT, OPEN = "text", "open"  # the groups of the suite's tasks and of the open requests
KINDS = ("near", "far")
NO_SOURCE = "of no named source"
NEAR_DESCRIPTION = 0.95  # cosine from which a description of ours says what an unseen one does
SAME = 0.5  # two tasks that share so much of the smaller one are the same
SUITE_DESCRIPTIONS = 40  # of the 128 that each task of the suite has
NOT_FROM_THE_SUITE = ("third_person",)  # a held-out task here, under another name
Pair = tuple[str, str]


def own_descriptions() -> dict[str, list[str]]:
    """Name of a real task -> the descriptions that we wrote for it."""
    return read_json(Path(__file__).with_name(DESCRIPTIONS), MAX_FILE_BYTES)


@dataclass
class Collection:
    """The tasks by what they are for, and how many examples were left out of each source of the training, and why."""

    trained: list[Task]
    held_out: dict[str, list[Task]]
    left_out: Counter[str] = field(default_factory=Counter)
    sources: dict[str, list[str]] = field(default_factory=dict)
    """Where the real tasks of the training are from, with the licence, and which are."""


def collect(
    folder: str | Path,
    open_requests: str | Path | None = None,
    instruction_induction: str | Path | None = None,
    research: bool = False,
    suite_examples: int = 200,
) -> Collection:
    """All tasks of a build.

    folder: real tasks. open_requests: a folder of tasks that `training.distill` wrote. instruction_induction: a folder
    of tasks whose test inputs are in no training example. research: also the tasks whose source says so. Raises
    `UserError` where a task that is held out would be trained on, by its name or by what it holds.
    """
    kinds = held_out_names(folder)
    real = load_tasks(folder)
    if unknown := sorted(kinds.keys() - {task.name for task in real}):
        raise UserError(f"{HELD_OUT} of {folder} names {unknown[0]!r}, and there is no such task.")
    held_out = {kind: [task for task in real if kinds.get(task.name) == kind] for kind in KINDS}
    every = [task for tasks in held_out.values() for task in tasks]
    sources = {
        "real tasks": [
            worded(task) for task in real if task.name not in kinds and (research or not is_research(folder, task.name))
        ],
        "text suite": suite_tasks(suite_examples),
        "our own": own_tasks(),
        "open requests": [replace(t, group=OPEN) for t in load_tasks(open_requests)] if open_requests else [],
    }
    check_not_held_out([task for tasks in sources.values() for task in tasks], every)
    benchmark = load_tasks(instruction_induction) if instruction_induction else []
    unseen = [text for task in (*real, *benchmark) for text in task.eval_descriptions]
    unseen += [text for task in benchmark for text in task.descriptions]
    sources["real tasks"], near = without_near(sources["real tasks"], unseen)
    inputs = {example["input"] for task in benchmark for example in task.test}
    found = Collection([], held_out, Counter({f"real tasks: {reason}": count for reason, count in near.items()}))
    for source, tasks in sources.items():
        kept, counts = without_leaks(tasks, every, inputs)
        found.trained += kept
        found.left_out.update({f"{source}: {reason}": count for reason, count in counts.items()})
    real_names = {task.name for task in sources["real tasks"]}
    for name in (task.name for task in found.trained if task.name in real_names):
        found.sources.setdefault(source_of(folder, name) or NO_SOURCE, []).append(name)
    return found


def held_out_names(folder: str | Path) -> dict[str, str]:
    """Name -> near or far, of the tasks that are never trained on; none where the folder has no such list."""
    path = Path(folder) / HELD_OUT
    if not path.exists():
        return {}
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not all(len(line) == 2 and line[1] in KINDS for line in lines):
        raise UserError(f"{path} must have a task's name and near or far on each line.")
    return dict(lines)


def source_of(folder: str | Path, name: str) -> str:
    """Where a task of the folder is from, with its licence, as its file says."""
    path = Path(folder) / f"{name}.json"
    data = read_json(path, MAX_FILE_BYTES) if path.exists() else {}
    return str(data.get("source", "")) if isinstance(data, dict) else ""


def is_research(folder: str | Path, name: str) -> bool:
    """Whether its source is marked research: what is trained on it is not to be given away."""
    return re.search(r"(?<!-)\bresearch\b(?!-)", source_of(folder, name)) is not None  # no google-research-datasets


def worded(task: Task) -> Task:
    """The task with our descriptions in front of its own."""
    ours = own_descriptions().get(task.name, [])
    return replace(task, descriptions=list(dict.fromkeys([*ours, *task.descriptions])))


def suite_tasks(count: int) -> list[Task]:
    """The text suite's trained tasks, by other names: some real tasks have the same."""
    return [
        Task(
            f"text_{task.name}",
            Random(task.name).sample(task.descriptions, min(SUITE_DESCRIPTIONS, len(task.descriptions))),
            list(task.eval_descriptions),
            examples(task, "train", count, 0),
            examples(task, "test", 56, 0),
            TEXT,
        )
        for task in suite()
        if task.group == "trained" and task.name not in NOT_FROM_THE_SUITE
    ]


# ---- what is kept out ----


def plain(text: str) -> str:
    """A text whatever its case and end mark: rows are typed in several ways."""
    return text.strip().lower().rstrip(END_MARKS).rstrip()


def pairs_of(example: Example) -> set[Pair]:
    """Input and each accepted output, plain."""
    return {(plain(example["input"]), plain(output)) for output in [example["output"], *example.get("outputs", [])]}


def check_not_held_out(trained: Sequence[Task], held_out: Sequence[Task]) -> None:
    """`UserError` where a task of the training is a held-out one, by its name or by what it holds."""
    names = {task.name for task in held_out}
    theirs = {task.name: _all_pairs(task) for task in held_out}
    for task in trained:
        if task.name in names:
            raise UserError(f"The task {task.name!r} is held out and trained on: take it out of one of the two.")
        own = _all_pairs(task)
        for name, pairs in theirs.items():
            if len(own & pairs) >= SAME * min(len(own), len(pairs)):
                raise UserError(
                    f"The task {task.name!r} holds the examples of the held-out task {name!r}: it is the same under "
                    "another name, so take it out of the training."
                )


def without_near(tasks: Sequence[Task], unseen: Sequence[str]) -> tuple[list[Task], Counter[str]]:
    """The tasks without those of our descriptions that are all but an unseen one, and how many these are.

    unseen: descriptions that only measuring may use. Near is a cosine of at least 0.95 by the encoder that the
    hypernetwork reads descriptions with; each that is left out is printed beside the unseen one. A task without any
    description left is left out too.
    """
    ours = own_descriptions()
    texts = list(dict.fromkeys(text for task in tasks for text in ours.get(task.name, [])))
    if not texts or not unseen:
        return list(tasks), Counter()
    embedder = load_embedder(HyperLoRAConfig.embedder)
    own, others = (F.normalize(embedder.embed(list(each)).float(), dim=-1) for each in (texts, unseen))
    cosine, nearest = (own @ others.T).max(dim=-1)
    near = {texts[i]: unseen[nearest[i]] for i in (cosine >= NEAR_DESCRIPTION).nonzero().flatten().tolist()}
    for text, other in near.items():
        print(f"Left out the description {text!r}: it is all but the unseen {other!r}.", flush=True)
    kept, counts = [], Counter()
    for task in tasks:
        out = near.keys() & set(ours.get(task.name, []))
        descriptions = [text for text in task.descriptions if text not in out]
        counts["descriptions near an unseen one"] += len(task.descriptions) - len(descriptions)
        if descriptions:
            kept.append(replace(task, descriptions=descriptions))
        else:
            counts["tasks without any description left"] += 1
    return kept, +counts


def _all_pairs(task: Task) -> set[Pair]:
    return {pair for example in (*task.train, *task.test) for pair in pairs_of(example)}


def without_leaks(
    tasks: Sequence[Task], held_out: Sequence[Task], inputs: Iterable[str]
) -> tuple[list[Task], Counter[str]]:
    """The tasks without the training examples that what is measured holds too, and how many these are, by the reason.

    A held-out task's test pair is left out in either order, and so are the everyday requests' pairs. `inputs` are left
    out whatever their answer. Tasks without any example left are left out too.
    """
    measured = [example for task in held_out for example in task.test]
    measured += [example for request in everyday_requests() for example in request.examples]
    pairs = {pair for example in measured for pair in pairs_of(example)}
    pairs |= {(b, a) for a, b in pairs}
    asked, counts, kept = {plain(text) for text in inputs}, Counter(), []
    for task in tasks:
        train = []
        for example in task.train:
            if not pairs.isdisjoint(pairs_of(example)):
                counts["a held-out test pair"] += 1
            elif plain(example["input"]) in asked:
                counts["a test input of instruction induction"] += 1
            else:
                train.append(example)
        if train:
            kept.append(replace(task, train=train))
        else:
            counts["tasks without any example left"] += 1
    return kept, counts
