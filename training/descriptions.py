"""Descriptions of tasks, written by a language model from their question-answer pairs (App. F, Fig. 11).

python -m training.descriptions --tasks DIR --output DIR [--url URL --model NAME | --local BASE] [--config FILE]

The task files of --tasks are copied into --output with their descriptions replaced; --tasks is never changed. A model
is asked 10 times a task for 20 descriptions, each time with five other pairs. The URL is that of any server that speaks
OpenAI's chat completions (vLLM, llama.cpp, Ollama and most companies' do); the key comes from an environment variable.

Every answer is kept in OUTPUT/queries/TASK/NUMBER.json as soon as it is there: a stopped run goes on with the queries
that have none. Descriptions that repeat another, and those that give away an answer of the pairs shown, are dropped and
counted.
"""

import dataclasses
import json
import random
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from tqdm import tqdm

from hyperlora.base import context_length, load_base
from hyperlora.describe import ask_for, parse_descriptions, words
from hyperlora.endpoint import Ask, Messages, Reply, endpoint
from hyperlora.errors import UserError
from hyperlora.files import write_atomic
from hyperlora.prompt import format_prompt
from training.parts.decode import decode
from training.parts.endpoint import EndpointOptions
from training.parts.options import option, parse, run
from training.parts.written import labels, leaks
from training.tasks import Example, Task, load_tasks

QUERIES = "queries"  # the folder in the output that holds the answers
TRIES = 3  # at a query whose answers hold few descriptions
MAX_RECORD_BYTES = 16 * 2**20


@dataclass(kw_only=True)
class Options(EndpointOptions):
    """What `python -m training.descriptions` takes. The defaults are those of App. F."""

    tasks: str = option(help="folder of task files, or another source that training.tasks reads")
    output: str = option(help="folder for the described task files; a run that was stopped goes on there")
    local: str | None = option(None, "a model on this machine instead of an endpoint: folder or Hub id")
    device: str = option("cpu", "of the local model: cpu, cuda, ...")
    bf16: bool = option(False, "the local model in bfloat16")
    queries: int = option(10, "queries a task", least=1, most=10**6)
    per_query: int = option(20, "descriptions asked for in a query", least=1, most=10**6)
    pairs: int = option(5, "question-answer pairs shown in a query, drawn from the training examples", least=1)
    pair_characters: int = option(
        3000, "characters of a question or an answer, beyond which its middle is left out", least=1
    )
    show_description: bool = option(True, "show the task's first own description before questions that do not hold it")
    system_message: bool = option(True, "send the system message apart; some endpoints only take it in the prompt")
    keep: bool = option(False, "keep the task's own descriptions, in front of the new ones")
    seed: int = option(0, "of the pairs drawn, and of a local model's sampling")
    strict: bool = option(False, "stop at a broken task file instead of skipping it")


@dataclass(frozen=True)
class Query:
    """One request: some pairs of a task, and what is asked about them."""

    path: Path
    """Where its answer is kept."""
    pairs: list[Example]
    request: dict[str, Any]
    """What the answer depends on: {"model", "temperature", "messages"}."""


def make_queries(task: Task, options: Options) -> list[Query]:
    """A task's queries, the same for the same seed whatever the other tasks are; none without training examples."""
    folder = Path(options.output) / QUERIES / task.name
    queries = []
    for number in range(options.queries if task.train else 0):
        draw = random.Random(f"{options.seed} {task.name} {number}")
        pairs = draw.sample(task.train, min(options.pairs, len(task.train)))
        request = {
            "model": options.local or options.model,
            "temperature": options.temperature,
            "messages": messages(task, pairs, options),
        }
        queries.append(Query(folder / f"{number}.json", pairs, request))
    return queries


def messages(task: Task, pairs: Sequence[Example], options: Options) -> Messages:
    """The chat of Figure 11 that asks for descriptions of the task behind some of its pairs."""
    shown = task.descriptions[0].strip() if options.show_description and task.descriptions else ""
    questions = [pair["input"] if shown in pair["input"] else f"{shown}\n\n{pair['input']}" for pair in pairs]
    asked = [(question, pair["output"]) for question, pair in zip(questions, pairs, strict=True)]
    return ask_for(asked, options.per_query, options.pair_characters, options.system_message)


# --- what an answer holds ---------------------------------------------------------------------------------------------


def select(task: Task, answers: Sequence[tuple[Query, str]], options: Options) -> tuple[list[str], Counter]:
    """The descriptions to keep from a task's answers, and what became of the others.

    Counts "asked", "written", "repeated", "leaked", and "empty" for answers without any. One that says the same as an
    evaluation description, which nothing may train on, is repeated too. A task that is left without keeps its own.
    """
    count = Counter(asked=len(answers) * options.per_query)
    kept = list(task.descriptions) if options.keep else []
    seen = {" ".join(words(text)) for text in [*kept, *task.eval_descriptions]}
    classes = labels(task)
    for query, text in answers:
        shown = [answer for pair in query.pairs for answer in [pair["output"], *pair.get("outputs", [])]]
        found = parse_descriptions(text)[: options.per_query]
        count["empty"] += not found
        for description in found:
            key = " ".join(words(description))
            if leaks(description, shown, classes):
                count["leaked"] += 1
            elif key in seen:
                count["repeated"] += 1
            else:
                seen.add(key)
                kept.append(description)
                count["written"] += 1
    return kept or list(task.descriptions), count


# --- who answers ------------------------------------------------------------------------------------------------------


def local_model(options: Options) -> Ask:
    """Ask a model on this machine, all chats in one batch.

    Raises UserError where it has no chat template or the messages do not fit its context.
    """
    model, tokenizer = load_base(
        options.local, dtype=torch.bfloat16 if options.bf16 else torch.float32, device=options.device
    )

    def ask(chats: Sequence[Messages], attempt: int) -> list[Reply]:
        prompts = [format_prompt(tokenizer, chat) for chat in chats]
        longest = max(map(len, prompts))
        room = context_length(model) - longest
        if room < 1:
            raise UserError(
                f"A query has {longest} tokens, more than {options.local} takes: lower --pairs or --pair_characters."
            )
        most = min(options.max_tokens or room, room)
        torch.manual_seed(zlib.crc32(f"{options.seed} {attempt} {prompts}".encode()))
        try:
            answers = decode(model, tokenizer, prompts, most, options.temperature)
        except torch.OutOfMemoryError as error:
            raise UserError(f"{options.local} needs more memory than there is: lower --concurrency.") from error
        return [
            Reply(tokenizer.decode(row, skip_special_tokens=True), len(prompt), len(row))
            for prompt, row in zip(prompts, answers, strict=True)
        ]

    return ask


# --- all tasks --------------------------------------------------------------------------------------------------------


def _answer(queries: Sequence[Query], ask: Ask, per_query: int) -> list[tuple[Query, Reply]]:
    """Ask until each answer holds half of the descriptions at least, or the tries are used up; keep the best one."""
    best: dict[int, Reply] = {}
    spent = {i: (0, 0) for i in range(len(queries))}
    todo = list(spent)
    for attempt in range(TRIES):
        replies = ask([queries[i].request["messages"] for i in todo], attempt)
        for i, reply in zip(todo, replies, strict=True):
            spent[i] = (spent[i][0] + reply.prompt_tokens, spent[i][1] + reply.answer_tokens)
            if i not in best or len(parse_descriptions(reply.text)) > len(parse_descriptions(best[i].text)):
                best[i] = reply
        todo = [i for i in todo if 2 * len(parse_descriptions(best[i].text)) < per_query]
        if not todo:
            break
    done = [(query, Reply(best[i].text, *spent[i])) for i, query in enumerate(queries)]
    for query, reply in done:
        record = query.request | reply._asdict()
        write_atomic(query.path, (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode())
    return done


def _stored(query: Query) -> Reply | None:
    """The answer that an earlier run got; UserError where the file is damaged, or answers another request."""
    if not query.path.is_file():
        return None
    try:
        if query.path.stat().st_size > MAX_RECORD_BYTES:
            raise ValueError
        record = json.loads(query.path.read_text(encoding="utf-8"))
        reply = Reply(**{name: record[name] for name in Reply._fields})
        request = {key: record[key] for key in query.request}
        if [type(value) for value in reply] != [str, int, int]:
            raise TypeError
    except (ValueError, TypeError, LookupError, RecursionError):
        raise UserError(f"{query.path} is damaged: delete it, and it will be asked again.") from None
    if request != query.request:
        changed = next(key for key in request if request[key] != query.request[key])
        raise UserError(
            f"{query.path} was asked with other {changed}: use the tasks and options of then, or another --output."
        )
    return reply


def describe(tasks: Sequence[Task], options: Options) -> Counter:
    """Ask for all descriptions that are not there yet, and write each task's file once its last answer is in.

    Returns the counts of `select` over all tasks, "prompt_tokens" and "answer_tokens" (of earlier runs too),
    "undescribed": tasks copied as they are, for they have no training examples.
    """
    total: Counter = Counter()
    plan = {task.name: make_queries(task, options) for task in tasks}
    answers: dict[str, dict[Path, str]] = {task.name: {} for task in tasks}
    by_name = {task.name: task for task in tasks}
    todo: list[Query] = []
    bar = tqdm(total=sum(map(len, plan.values())), unit="query", dynamic_ncols=True)

    def take(query: Query, reply: Reply) -> None:
        name = query.path.parent.name
        answers[name][query.path] = reply.text
        total.update(prompt_tokens=reply.prompt_tokens, answer_tokens=reply.answer_tokens)
        bar.set_postfix_str(f"{total['prompt_tokens']:,} + {total['answer_tokens']:,} tokens", refresh=False)
        if len(answers[name]) == len(plan[name]):
            finish(by_name[name])

    def finish(task: Task) -> None:
        texts = answers.pop(task.name)
        descriptions, count = select(task, [(query, texts[query.path]) for query in plan[task.name]], options)
        total.update(count)
        dataclasses.replace(task, descriptions=descriptions).save(options.output)

    stop = Event()

    def work(batch: Sequence[Query]) -> list[tuple[Query, Reply]]:
        if stop.is_set():
            return []
        try:
            return _answer(batch, ask, options.per_query)
        except BaseException:  # here, before this thread begins with the next batch
            stop.set()
            raise

    # threads wait for a server; a model on this machine takes a batch at a time
    workers, size = (1, options.concurrency) if options.local else (options.concurrency, 1)
    with bar, ThreadPoolExecutor(workers) as pool:
        for name, queries in plan.items():
            if not queries:
                total["undescribed"] += 1
                by_name[name].save(options.output)
            for query in queries:
                if (reply := _stored(query)) is None:
                    todo.append(query)
                else:
                    bar.initial += 1
                    bar.n += 1
                    take(query, reply)
        if not todo:
            return total
        ask = local_model(options) if options.local else endpoint(options, stop)
        batches = [todo[i : i + size] for i in range(0, len(todo), size)]
        try:
            running = [pool.submit(work, batch) for batch in batches]
            for future in as_completed(running):
                for query, reply in future.result():
                    take(query, reply)
                    bar.update()
        except BaseException:  # an interrupt too: what is under way is still kept, the rest is not begun
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return total


def _check(options: Options) -> None:
    source, output = Path(options.tasks).resolve(), Path(options.output).resolve()
    if output in (source, source / "tasks"):
        raise UserError(f"--output must be another folder than that of --tasks, {options.tasks}, which stays as it is.")


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    _check(options)
    tasks = load_tasks(options.tasks, options.strict)
    try:
        count = describe(tasks, options)
    except OSError as error:
        raise UserError(f"{error.filename or options.output} cannot be written ({error.strerror}).") from error
    print(
        f"{len(tasks)} tasks are in {options.output}, with {count['written']:,} new descriptions of {count['asked']:,} "
        f"asked for. Dropped: {count['repeated']:,} that repeat another, {count['leaked']:,} that give an answer away. "
        f"{count['empty']:,} queries gave none; {count['undescribed']:,} tasks have no training examples to describe. "
        f"Tokens: {count['prompt_tokens']:,} of prompts, {count['answer_tokens']:,} of answers."
    )


if __name__ == "__main__":
    run(main)
