"""Exact match of every way to answer a task: the base alone or prompted, plain LoRAs, retrieval, HyperLoRA, oracles.

python -m training.evaluate --tasks DIR --base DIR --hyperlora DIR [--held_out DIR ..] [--adapters DIR] --output FILE
"""

import json
import random
import statistics
import string
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from training.lora import load_adapters
from training.options import option, parse, run
from training.tasks import Example, Task, encode_prompts, load_tasks, prompt_text

# Kinds of description (Table 5). A task that no stage trained on has unseen descriptions only.
SEEN, UNSEEN, OTHER, RANDOM, NO_DESCRIPTION = "seen", "unseen", "another task's", "random string", "none"
KINDS = (SEEN, UNSEEN, OTHER, RANDOM)


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
                texts = _generate(adapted.model, tokenizer, [prompts[r] for r in rows], max(limits[r] for r in rows))
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
        for slot in slots.values():
            if slot is not None:
                adapted.unload(slot)
    return answers


def _generate(model, tokenizer, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
    length, device = max(map(len, prompts)), model.get_input_embeddings().weight.device
    ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return [text.strip() for text in tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)]


@dataclass
class Trial:
    """A task's examples answered in one way."""

    task: Task
    examples: Sequence[Example]
    kind: str = NO_DESCRIPTION
    description: str | None = None
    adapter: Adapter | None = None
    shown: bool = False  # the description is in the prompt too


def score(adapted: AdaptedModel, tokenizer, trials: Sequence[Trial], batch_size: int = 256) -> list[float]:
    """Exact match (both sides stripped) of each trial, 0 to 1; all trials are answered in shared batches."""
    examples = [(trial, example) for trial in trials for example in trial.examples]
    texts = [prompt_text(example["input"], trial.description if trial.shown else None) for trial, example in examples]
    # an answer longer than the expected one is wrong already: the space is what some templates put before an answer
    expected = tokenizer([" " + example["output"] for _, example in examples], add_special_tokens=False).input_ids
    answers = answer(
        adapted,
        tokenizer,
        encode_prompts(tokenizer, texts),
        [trial.adapter for trial, _ in examples],
        [len(ids) + 2 for ids in expected],
        batch_size,
    )
    hits = iter([a == example["output"].strip() for a, (_, example) in zip(answers, examples, strict=True)])
    return [statistics.fmean(next(hits) for _ in trial.examples) for trial in trials]


@dataclass
class Settings:
    """How much is measured."""

    examples: int = option(24, "test examples a task and seed")
    descriptions: int = option(3, "descriptions a task, kind and seed (the paper's tables average over three)")
    seeds: int = option(3, "evaluation seeds; each draws its own examples and descriptions")
    batch_size: int = option(256, "rows decoded together")


def random_strings(count: int, draw: random.Random) -> list[str]:
    """`count` strings of 10 to 40 random letters and digits (App. A.4)."""
    letters = string.ascii_letters + string.digits
    return ["".join(draw.choices(letters, k=draw.randint(10, 40))) for _ in range(count)]


def pick_descriptions(task: Task, kind: str, trained: Sequence[Task], count: int, draw: random.Random) -> list[str]:
    """Up to `count` descriptions of one kind; another task's, where asked for, is a trained task's. Maybe none."""
    is_trained = any(other.name == task.name for other in trained)
    if kind == RANDOM:
        return random_strings(count, draw)
    if kind == OTHER:
        others = [other for other in trained if other.name != task.name]
        return [draw.choice(draw.choice(others).descriptions) for _ in range(count)] if others else []
    if kind == SEEN:
        pool = task.descriptions if is_trained else []
    else:
        pool = task.eval_descriptions if is_trained else task.descriptions + task.eval_descriptions
    return draw.sample(pool, min(count, len(pool)))


class Retrieval:
    """The hypernetwork's adapter of the training description that is nearest, instead of the description's own."""

    def __init__(self, hyperlora: HyperLoRA):
        self.hyperlora = hyperlora

    def generate(self, texts: list[str]) -> list[Adapter]:
        nearest = self.hyperlora.nearest(self.hyperlora.embedder.embed(texts))
        return self.hyperlora.generate([description for description, _ in nearest])


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
    were trained on (what is a seen description). hyperloras: a label -> the checkpoint; the first one is also measured
    with the description in the prompt, and gives retrieval its adapters. adapters: "multi_task", "average" and, by task
    name, a task's own; what is absent is not measured. A row: {"method", "split", "kind", "task", "seed", "score",
    "descriptions", "examples"}, the score a mean over the descriptions.
    """
    settings = settings or Settings()
    rows = []
    for seed in range(settings.seeds):
        for split, tasks in splits.items():
            drawn = _draw(tasks, trained, settings, seed)
            plain = [Trial(task, examples) for task, examples, _ in drawn]
            described = [
                Trial(task, examples, kind, text)
                for task, examples, texts in drawn
                for kind in KINDS
                for text in texts[kind]
            ]
            for method, trials in _methods(plain, described, hyperloras, adapters):
                if not trials:
                    continue
                results = defaultdict(list)
                for trial, value in zip(trials, score(adapted, tokenizer, trials, settings.batch_size), strict=True):
                    results[trial.task.name, trial.kind].append((value, len(trial.examples)))
                for (task, kind), values in results.items():
                    rows.append(
                        {
                            "method": method,
                            "split": split,
                            "kind": kind,
                            "task": task,
                            "seed": seed,
                            "score": statistics.fmean(value for value, _ in values),
                            "descriptions": len(values) if kind != NO_DESCRIPTION else 0,
                            "examples": values[0][1],
                        }
                    )
                entries = summary([row for row in rows if row["seed"] == seed])
                done = [e for e in entries if (e["method"], e["split"]) == (method, split)]
                means = ", ".join(f"{e['kind']} {e['mean']:.3f}" for e in done)
                print(f"seed {seed}, {split}, {method}: {means}", flush=True)
    return rows


def _draw(tasks: Sequence[Task], trained: Sequence[Task], settings: Settings, seed: int) -> list[tuple]:
    """(task, examples, kind -> descriptions) of one seed; the same draw whatever the other tasks are."""
    drawn = []
    for task in tasks:
        if task.test:
            draw = random.Random(f"{seed} {task.name}")
            examples = draw.sample(task.test, min(settings.examples, len(task.test)))
            texts = {kind: pick_descriptions(task, kind, trained, settings.descriptions, draw) for kind in KINDS}
            drawn.append((task, examples, texts))
    return drawn


def _methods(
    plain: Sequence[Trial],
    described: Sequence[Trial],
    hyperloras: Mapping[str, HyperLoRA],
    adapters: Mapping[str, Adapter],
) -> Iterator[tuple[str, list[Trial]]]:
    """(method, its trials) one after another, so that one method's adapters are in memory at a time."""

    def generated(source, shown: bool = False) -> list[Trial]:
        trials = [t for t in described if t.kind in (SEEN, UNSEEN)] if shown else described
        made = source.generate([trial.description for trial in trials]) if trials else []
        return [Trial(t.task, t.examples, t.kind, t.description, a, shown) for t, a in zip(trials, made, strict=True)]

    def with_adapter(name: str | None) -> list[Trial]:
        """One adapter for all tasks, or (None) each task's own."""
        return [
            Trial(t.task, t.examples, adapter=adapters[key]) for t in plain if (key := name or t.task.name) in adapters
        ]

    yield "base", list(plain)
    yield (
        "base, prompted",
        [Trial(t.task, t.examples, t.kind, t.description, shown=True) for t in described if t.kind in (SEEN, UNSEEN)],
    )
    yield "multi-task LoRA", with_adapter("multi_task")
    yield "average LoRA", with_adapter("average")
    for hyperlora in list(hyperloras.values())[:1]:
        yield "retrieval", generated(Retrieval(hyperlora))
    for label, hyperlora in hyperloras.items():
        yield label, generated(hyperlora)
    for label, hyperlora in list(hyperloras.items())[:1]:
        yield f"{label}, prompted", generated(hyperlora, shown=True)
    yield "oracle LoRA", with_adapter(None)


def summary(rows: Sequence[dict]) -> list[dict]:
    """One entry a method, kind and split: the mean over tasks and its standard deviation over seeds."""
    cells: dict[tuple, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["method"], row["kind"], row["split"]][row["seed"]].append(row["score"])
    entries = []
    for (method, kind, split), seeds in cells.items():
        means = [statistics.fmean(scores) for scores in seeds.values()]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        tasks = len({r["task"] for r in rows if (r["method"], r["kind"], r["split"]) == (method, kind, split)})
        entry = {"method": method, "kind": kind, "split": split, "mean": statistics.fmean(means), "spread": spread}
        entries.append(entry | {"tasks": tasks})
    return entries


def markdown_table(rows: Sequence[dict]) -> str:
    """Methods and kinds of description down, splits across; mean over tasks ± spread over seeds."""
    entries = summary(rows)
    splits = list(dict.fromkeys(e["split"] for e in entries))
    lines = ["| method | description | " + " | ".join(splits) + " |", "| --- | --- |" + " --- |" * len(splits)]
    for method, kind in dict.fromkeys((e["method"], e["kind"]) for e in entries):
        cells = {e["split"]: e for e in entries if (e["method"], e["kind"]) == (method, kind)}
        texts = [f"{cells[s]['mean']:.2f} ± {cells[s]['spread']:.2f}" if s in cells else "" for s in splits]
        lines.append(f"| {method} | {kind} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def save_results(path: str | Path, rows: Sequence[dict], settings: Settings) -> None:
    """{"settings", "summary", "rows"} as one JSON file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: asdict(settings)[key] for key in Settings.__dataclass_fields__}
    data = {"settings": kept, "summary": summary(rows), "rows": list(rows)}
    path.write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(kw_only=True)
class Options(Settings):
    """What `python -m training.evaluate` takes beside the settings."""

    tasks: str = option(help="folder of the tasks that were trained on")
    base: str = option(help="the base model: folder or Hub id")
    hyperlora: list[str] = option(help="checkpoints; the first is also measured with a prompt")  # noqa: RUF009
    output: str = option(help="file for the results (JSON); the table goes to standard output")
    held_out: list[str] | None = option(None, "folders of tasks never trained on, each a split")  # noqa: RUF009
    adapters: str | None = option(None, "folder of plain LoRAs as training.lora writes it")
    device: str = option("cpu", "cpu, cuda, ...")


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    trained = load_tasks(options.tasks)
    splits = {"trained tasks": trained} | {Path(folder).name: load_tasks(folder) for folder in options.held_out or []}
    hyperloras = {}
    for path in options.hyperlora:
        checkpoint = HyperLoRA.from_pretrained(path)
        label = f"HyperLoRA {checkpoint.config.head}"
        hyperloras[label if label not in hyperloras else f"{label} ({path})"] = checkpoint
    model, tokenizer = load_base(options.base, device=options.device)
    adapted = AdaptedModel(model, next(iter(hyperloras.values())).config.target_modules)
    adapters = load_adapters(options.adapters) if options.adapters else {}
    rows = evaluate(adapted, tokenizer, splits, trained, hyperloras, adapters, options)
    save_results(options.output, rows, options)
    print(markdown_table(rows))


if __name__ == "__main__":
    run(main)
