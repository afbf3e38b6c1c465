"""Prompt distillation: a base model's own answers to described requests, as tasks that an adapter learns them from.

python -m training.distill --base BASE --requests FILE --output DIR

FILE is a JSON list of {"kind", "descriptions": [..], "messages": [..]}, such as training/smollm2/open.json. The base is
sent each of a kind's messages with each of its descriptions in front, exactly as chat sends them with the description
in the prompt, and samples an answer. No data set is needed: what a hypernetwork learns from the tasks is to do without
the description what the base does with it.

Descriptions of one kind ask for different things ("translate", "translate, and say how it is pronounced"), so each is a
task of its own, OUTPUT/KIND-NUMBER.json, and the kind its group. Some of a kind's messages are held back as its tasks'
test examples. Answers that go round in circles, are empty, or are cut at the token limit are dropped and counted.

Every answer is kept in OUTPUT/answers/answers.jsonl as soon as it is there: a stopped run goes on with those that are
missing, and what is added to FILE is answered too.
"""

import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tqdm import tqdm

from hyperlora.adapted import AdaptedModel
from hyperlora.base import Precision, load_base, precision
from hyperlora.chat import ChatEngine, ChatStream
from hyperlora.config import read_json
from hyperlora.errors import UserError, shown
from hyperlora.files import write_atomic, writing
from hyperlora.prompt import with_description
from hyperlora.text import check_text
from training.parts.digest import base_digest
from training.parts.metrics import loops
from training.parts.options import option, parse, run
from training.tasks import NAME, Example, Task

ANSWERS = Path("answers", "answers.jsonl")  # in the output
MAX_FILE_BYTES = 256 * 2**20
TEMPERATURE, TOP_P = 0.2, 0.9  # of a base that says none, as SmolLM2's authors advise: a small one talks nonsense above
FREE = "choose a folder that can be written"


@dataclass(frozen=True)
class Kind:
    """Requests of one kind: how they may be described, and what is sent after the description."""

    name: str
    descriptions: list[str]
    messages: list[str]


@dataclass(kw_only=True)
class Options:
    """What `python -m training.distill` takes."""

    base: str = option(help="base model that answers: folder or Hub id")
    requests: str = option(help='JSON file, a list of {"kind", "descriptions", "messages"}')
    output: str = option(help="folder for the task files; a run that was stopped goes on there")
    device: str = option("cpu", "cpu, cuda, ...")
    base_dtype: Precision = option("float32", "the base held in float32, bfloat16, 8bit or 4bit")
    temperature: float | None = option(
        None,
        f"of the sampling; default: the base's own, or {TEMPERATURE} where it does not sample",
        least=1e-3,
        most=100,
    )
    top_p: float | None = option(
        None, f"of the sampling; default: the base's own, or {TOP_P} where it does not sample", above=0, most=1
    )
    max_tokens: int = option(384, "tokens of an answer, at which it is cut and dropped", least=1, most=10**6)
    held_back: int = option(2, "messages of a kind that are kept for the tests of its tasks", least=0)
    batch_size: int = option(32, "answers that are decoded together", least=1, most=1024)
    seed: int = option(0, "of the sampling; each answer has its own numbers, whatever is decoded beside it", least=0)


def read_requests(path: str | Path) -> list[Kind]:
    """The kinds of request in a file. Raises UserError where it is none."""
    kinds = read_json(path, MAX_FILE_BYTES)
    form = f'{path} must be a list of {{"kind", "descriptions", "messages"}}'
    if not isinstance(kinds, list) or not all(isinstance(kind, dict) for kind in kinds) or not kinds:
        raise UserError(f"{form}.")
    found = []
    for kind in kinds:
        name = kind.get("kind")
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise UserError(f'{form}, a kind\'s name of letters, digits, "_", "-" and ".", not {shown(name)}.')
        for key in ("descriptions", "messages"):
            texts = kind.get(key)
            if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
                raise UserError(f"{form}: the {key} of {name!r} must be texts that are not blank.")
            if len({text.strip() for text in texts}) < len(texts):
                raise UserError(f"{path}: one of the {key} of {name!r} is there twice: take it away.")
            for text in texts:
                check_text(text, f"{path}: {name!r}")
        found.append(Kind(name, kind["descriptions"], [message.strip() for message in kind["messages"]]))
    if len({kind.name for kind in found}) < len(found):
        raise UserError(f"{path} has two kinds of one name: rename one.")
    return found


# ---- answers ----


@dataclass(frozen=True)
class Answer:
    """What the base said; `end` is a `ChatStream.finish_reason`."""

    text: str
    end: str

    @property
    def fate(self) -> str:
        """Whether it is kept, or why not."""
        if self.end == "length":
            return "cut"
        if not self.text.strip():
            return "empty"
        return "looping" if loops(self.text) else "kept"


Answers = dict[tuple[str, str], Answer]  # by description and message


def read_answers(path: Path, settings: dict[str, object]) -> Answers:
    """What an earlier run kept, and the file as whole lines; UserError where it is damaged or of other settings."""
    if not path.exists():
        return {}
    found, lines = {}, []
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError
        whole, _, _ = path.read_bytes().rpartition(b"\n")  # without a line that was being written
        lines = [json.loads(line) for line in whole.decode().split("\n")]
        for row in lines[1:]:
            found[row["description"], row["message"]] = Answer(check_text(row["answer"], str(path)), str(row["end"]))
        changed = [name for name in settings if lines[0][name] != settings[name]]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        raise UserError(f"{path} is damaged: delete it, and everything will be asked again.") from None
    if changed:
        raise UserError(f"{path} was made with another {changed[0]}: use that of then, or another --output.")
    write_atomic(path, whole + b"\n")
    return found


def ask(engine: ChatEngine, kinds: Sequence[Kind], options: Options, settings: dict[str, object]) -> Answers:
    """The base's answers to all requests, each kept as soon as it is there; those that are kept are not asked again.

    Raises UserError, before the first answer, where a request does not fit the base's context.
    """
    path = Path(options.output) / ANSWERS
    with writing(path, FREE):
        answers = read_answers(path, settings)
        if not answers:
            write_atomic(path, (json.dumps(settings) + "\n").encode())
    pairs = list(dict.fromkeys((d, message) for kind in kinds for d in kind.descriptions for message in kind.messages))
    todo = [pair for pair in pairs if pair not in answers]
    sampling = {name: settings[name] for name in ("temperature", "top_p") if settings[name] is not None}
    engine.max_waiting = len(todo)
    streams = [
        engine.submit(
            with_description(description, message),
            seed=zlib.crc32(f"{options.seed}\n{description}\n{message}".encode()),
            do_sample=True,
            max_new_tokens=options.max_tokens,
            **sampling,
        )
        for description, message in todo
    ]

    def read(pair: tuple[str, str], stream: ChatStream) -> tuple[tuple[str, str], Answer]:
        return pair, Answer("".join(stream), stream.finish_reason)

    bar = tqdm(initial=len(pairs) - len(todo), total=len(pairs), unit="answer", dynamic_ncols=True)
    with bar, ThreadPoolExecutor(options.batch_size) as pool:  # a reader for each that is decoded
        try:
            for future in as_completed([pool.submit(read, *each) for each in zip(todo, streams, strict=True)]):
                pair, answer = future.result()
                answers[pair] = answer
                row = {"description": pair[0], "message": pair[1], "answer": answer.text, "end": answer.end}
                with writing(path, FREE), path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                bar.update()
        except BaseException:  # an interrupt too: nobody reads on
            for stream in streams:
                stream.stop()
            raise
    return answers


# ---- tasks ----


def make_tasks(kinds: Sequence[Kind], answers: Answers, options: Options) -> tuple[list[Task], Counter]:
    """A task for each description that has a training example, and what became of the answers.

    Counts "kept", and those dropped: "cut" at the token limit, "looping", "empty"; and "left" descriptions.
    """
    tasks, count = [], Counter()
    for kind in kinds:
        held_back = set(Random(kind.name).sample(kind.messages, min(options.held_back, len(kind.messages) - 1)))
        for number, description in enumerate(kind.descriptions, 1):
            task = Task(f"{kind.name}-{number}", [description], group=kind.name)
            for message in kind.messages:
                answer = answers[description, message]
                count[answer.fate] += 1
                if answer.fate == "kept":
                    split = task.test if message in held_back else task.train
                    split.append(Example(input=message, output=answer.text.strip()))
            if task.train:
                tasks.append(task)
            else:
                count["left"] += 1
    return tasks, count


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    kinds = read_requests(options.requests)
    model, tokenizer = load_base(options.base, device=options.device, **precision(options.base_dtype))
    said = {} if model.generation_config.do_sample else {"temperature": TEMPERATURE, "top_p": TOP_P}
    settings = {
        "base": base_digest(model),
        "base_dtype": options.base_dtype,
        "temperature": said.get("temperature") if options.temperature is None else options.temperature,
        "top_p": said.get("top_p") if options.top_p is None else options.top_p,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
    }
    adapted = AdaptedModel(model, [], max_adapters=options.batch_size)
    with closing(ChatEngine(adapted, tokenizer, max_batch=options.batch_size)) as engine:
        answers = ask(engine, kinds, options, settings)
    tasks, count = make_tasks(kinds, answers, options)
    for task in tasks:
        task.save(options.output)
    print(
        f"{len(tasks)} tasks with {count['kept']:,} answers are in {options.output}. Dropped: {count['looping']:,} in "
        f"circles, {count['cut']:,} cut at {options.max_tokens} tokens, {count['empty']:,} empty; "
        f"{count['left']:,} descriptions are left without any."
    )


if __name__ == "__main__":
    run(main)
