"""Tasks: where they come from, and the files that every stage of training reads.

python -m training.tasks --source SOURCE --output DIR [--select train] [--first N] [--strict]

writes the tasks of any source as task files, the one form that the other stages take. A task file is one of

NAME.json   {"name", "descriptions": [..], "train": [{"input", "output"}, ..], "test": [..]} and, if wanted,
            "eval_descriptions": [..] (never trained on) and "group": a name for reports.
NAME.jsonl  the first line the same object without "train" and "test", each further line one example, of the split
            "train" unless it says {"input", "output", "split": "test"}.

"name" is the file's where it is absent, and "descriptions" may be absent until training.descriptions writes them. An
example may hold "outputs": [..], all answers that evaluation accepts; the first is "output", which training teaches. A
task file of natural-instructions is taken as well (training/parts/sni.py).
"""

import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from hyperlora.errors import UserError
from hyperlora.files import write_atomic, writing
from hyperlora.text import check_text
from training.parts import hub_tasks, sni
from training.parts.options import option, parse, run

MAX_FILE_BYTES = 256 * 2**20
HUB = "hub:"
NAME = r"\w[\w.-]{0,199}"  # of a task, and of a LoRA: a plain file's or folder's
NAMED = 20  # broken files that are named one by one


class Example(TypedDict):
    """A question and its answer; `outputs`, where there are several, are all that are right, `output` the first.

    turns: messages and answers that came before, in evaluation alone; no task file has them.
    """

    input: str
    output: str
    outputs: NotRequired[list[str]]
    turns: NotRequired[list[tuple[str, str]]]


@dataclass
class Task:
    """One task t^i of the paper's Section 2: descriptions Z^i and examples (X^i, Y^i)."""

    name: str
    descriptions: list[str]
    eval_descriptions: list[str] = field(default_factory=list)
    train: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)
    group: str | None = None

    def save(self, folder: str | Path) -> Path:
        """Write the task as FOLDER/NAME.json, in the form that `load_task` reads. `UserError` where that fails."""
        path = Path(folder) / f"{self.name}.json"
        with writing(path, "free some space, or choose another output folder"):
            write_atomic(path, (json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n").encode())
        return path


def load_task(path: str | Path, limit: int | None = None, definition: bool = True) -> Task:
    """Read one task's file. Raises UserError, naming the file, when it is not a task.

    limit, definition: as in `load_tasks`.
    """
    path = Path(path)
    data = _read(path)
    if not isinstance(data, dict):
        raise UserError(f'{path} must hold one JSON object with "name", "descriptions", "train" and "test".')
    if "Instances" in data:
        data = sni.as_task(data, path.stem, str(path), definition)
        limit = sni.LIMIT if limit is None else limit
    return _task(data, path.stem, str(path), limit)


def load_hub_task(name: str, limit: int | None = None, definition: bool = True) -> Task:
    """Read one task of the Hub (`hub_tasks.as_task`). Raises UserError; limit, definition: as in `load_tasks`."""
    data = hub_tasks.as_task(name, definition)
    return _task(data, data["name"], HUB + name, sni.LIMIT if limit is None else limit)


def _read(path: Path) -> Any:
    """A task file's content; the lines of a JSONL file as the object that the JSON file would hold."""
    where, lines = str(path), []
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: split the task into smaller files.")
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            return json.loads(text)
        for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut at separators within a text
            where = f"{path}, line {number},"
            lines += [json.loads(line)] if line.strip() else []
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError too
        raise UserError(f"{where} is not readable as JSON ({error}): mend it or take it away.") from None
    head, examples = lines[:1], lines[1:]
    if not head or not isinstance(head[0], dict) or "input" in head[0]:
        raise UserError(
            f'{path} must begin with a line that holds "descriptions", or {{}}; examples follow, one a line.'
        )
    splits = {"train": [], "test": []}
    for example in examples:
        split = example.get("split", "train") if isinstance(example, dict) else None
        if split not in ("train", "test"):
            raise UserError(f'{path}: a line after the first is one example, its "split" train, test or absent.')
        splits[split].append(example)
    return head[0] | splits


def _task(data: dict[str, Any], name: str, where: str, limit: int | None) -> Task:
    """The content of a task file -> the task, all of it checked; `where` begins each message of a UserError."""

    def texts(key: str) -> list[str]:
        values = data.get(key, [])
        if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
            raise UserError(f'{where}: "{key}" must be a list of texts that are not blank.')
        _check_characters(values, where)
        return values

    def examples(key: str) -> list[Example]:
        rows = data.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) and _is_example(row) for row in rows):
            raise UserError(f'{where}: "{key}" must be a list of {{"input": text, "output": text}}.')
        _check_characters(_texts_of(rows), where)
        if limit is not None and len(rows) > limit:
            rows = random.Random(name).sample(rows, limit)  # the first ones are often of one kind
        return [_example(row) for row in rows]

    name, group = data.get("name", name), data.get("group")
    if not isinstance(name, str) or not re.fullmatch(NAME, name) or not isinstance(group, str | None):
        raise UserError(f'{where}: "name" must be of letters, digits, "_", "-" and ".", and "group" a text or absent.')
    _check_characters([group or ""], where)
    task = Task(name, texts("descriptions"), texts("eval_descriptions"), examples("train"), examples("test"), group)
    if not task.train and not task.test:
        raise UserError(f'{where} has no examples: give it "train", "test" or both.')
    return task


def descriptions_of(task: Task) -> list[str]:
    """`UserError` where there are none: a file may lack them until `training.descriptions` has written some."""
    if not task.descriptions:
        raise UserError(f"The task {task.name!r} has no descriptions: give it some, as training.descriptions does.")
    return task.descriptions


def _is_example(row: dict[str, Any]) -> bool:
    outputs = row.get("outputs", [])
    texts = [row.get("input"), row.get("output"), *outputs] if isinstance(outputs, list) else [None]
    return all(isinstance(text, str) for text in texts)


def _texts_of(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield from (row["input"], row["output"], *row.get("outputs", []))


def _check_characters(texts: Iterable[str], where: str) -> None:
    """UserError where a text holds half a character: JSON can."""
    for text in texts:
        check_text(text, where)


def _example(row: dict[str, Any]) -> Example:
    outputs = list(dict.fromkeys([row["output"], *row.get("outputs", [])]))
    more = {"outputs": outputs} if len(outputs) > 1 else {}
    return Example(input=row["input"], output=row["output"], **more)


def load_tasks(
    source: str | Path,
    strict: bool = True,
    limit: int | None = None,
    definition: bool = True,
    names: Sequence[str] | None = None,
) -> list[Task]:
    """All tasks of a source, by file name.

    source: a folder of task files (*.json, *.jsonl), a clone of natural-instructions, or on the Hub
    (training/parts/hub_tasks.py) `hub:Lots-of-LoRAs/task...`, `hub:` and a benchmark's name, `hub:benchmarks`, `hub:`
    and a list of selection.json.
    limit: at most so many training and so many test examples a task, drawn by its name; None: 500 of
    natural-instructions and the Hub, all of other files. definition: whether a prompt of natural-instructions holds the
    task's Definition before the input. names: only these files, or data sets (without their owner), in this order.

    A broken file, or a name that is not there, raises UserError; with `strict=False` it is skipped, and stderr says
    which and how many. Tasks that are not in English are left out and counted.
    """
    if str(source).startswith(HUB):
        found = hub_tasks.names(str(source).removeprefix(HUB))
        items = [(name.rpartition("/")[2], partial(load_hub_task, name)) for name in found]
    else:
        items = [(path.stem, partial(load_task, path)) for path in _task_files(Path(source))]
    problems, total = [], len(items)
    if names is not None:
        order = {name: i for i, name in enumerate(names)}
        items = sorted((item for item in items if item[0] in order), key=lambda item: order[item[0]])
        problems = [f"{source} has no task {n!r}." for n in sorted(order.keys() - {name for name, _ in items})]
        total = len(order)
    if problems and strict:
        raise UserError(problems[0])
    tasks, foreign = [], 0
    for _, load in items:
        try:
            tasks.append(load(limit=limit, definition=definition))
        except sni.NotEnglish:
            foreign += 1
        except UserError as error:
            if strict or isinstance(error.__cause__, ConnectionError):  # the next one would not be reached either
                raise
            problems.append(str(error))
    if problems:
        lines = [*problems[:NAMED], "..."] if len(problems) > NAMED else problems
        print("\n  ".join([f"Skipped {len(problems)} of {total} tasks:", *lines]), file=sys.stderr)
    if foreign:
        print(f"Left out {foreign} tasks that are not in English.", file=sys.stderr)
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError(f"{source} holds two tasks of the same name: rename one.")
    if not tasks:
        raise UserError(f"{source} holds no readable task.")
    return tasks


def _task_files(folder: Path) -> list[Path]:
    """The task files of a folder, or of the folder `tasks` in it, as in a clone of natural-instructions; by name."""
    for place in (folder / "tasks", folder):
        if paths := sorted(path for path in place.glob("*.json*") if path.suffix in (".json", ".jsonl")):
            return paths
    raise UserError(f"{folder} holds no task files (*.json, *.jsonl).")


@dataclass(kw_only=True)
class Options:
    """What `python -m training.tasks` takes."""

    source: str = option(help="folder of task files, clone of natural-instructions, or hub:NAME")
    output: str = option(help="folder for the task files, one a task; others in it stay")
    select: str | None = option(None, "train, held_out or removed of selection.json, or a file with a name a line")
    first: int = option(0, "only the first so many of the selected names, where above 0", least=0)
    limit: int = option(sni.LIMIT, "at most so many training and so many test examples a task; 0: all", least=0)
    definition: bool = option(True, "natural-instructions: the Definition before the input, or the input alone")
    strict: bool = option(False, "stop at a broken or missing task instead of skipping it")


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    if options.first and not options.select:
        raise UserError("--first takes the first of the names that --select says: give that too.")
    names = sni.selection(options.select)[: options.first or None] if options.select else None
    limit = options.limit or sys.maxsize
    tasks = load_tasks(options.source, options.strict, limit, options.definition, names)
    for task in tasks:
        task.save(options.output)
    train, test = (sum(len(getattr(task, split)) for task in tasks) for split in ("train", "test"))
    print(f"{len(tasks)} tasks with {train} training and {test} test examples are in {options.output}.")


if __name__ == "__main__":
    run(main)
