"""The ten benchmarks of the paper's tables, through lm-eval, for every way to adapt the base.

How well it answers, that is; how fast, and with how much memory, is what the folder `benchmarks/` measures.

python -m training.benchmarks --base DIR [--hyperlora DIR ..] [--adapters DIR --tasks DIR] --output FILE

A benchmark fills its batches by itself, so its adapters are measured one after another. All prompts go through the
chat template, as in training, and without examples, save those of the few-shot row. A stopped run goes on; a row whose
base, checkpoint, LoRA or descriptions are others now is measured again.
"""

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperlora.adapted import AdaptedModel
from hyperlora.config import PromptStyle, read_json
from hyperlora.errors import UserError, first_line
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from hyperlora.prompt import apply_template, control_tokens, encode_marked, mark, mark_chat, with_description
from hyperlora.text import check_text
from training.parts.arrow import Arrow
from training.parts.baselines import NearestLoRA
from training.parts.digest import base_digest, tensor_digest, value_digest
from training.parts.kinds import NO_DESCRIPTION, UNSEEN
from training.parts.options import option, parse, run
from training.parts.results import (
    MULTI_TASK,
    NEAREST,
    ORACLE,
    PROMPTED,
    check_output,
    paper_table,
    read_results,
    write_results,
    write_table,
)
from training.parts.sources import Sources
from training.tasks import load_tasks

try:
    import lm_eval.evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ImportError:  # `AdaptedLM` says so, in one sentence
    HFLM = None

DESCRIPTIONS = Path(__file__).parent / "parts" / "benchmark_descriptions.json"
FEW_SHOT_SEED = 1234  # lm-eval's own
MAX_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Benchmark:
    """One column of the paper's tables."""

    name: str
    """The name of its descriptions, and of its own LoRA in a library."""
    label: str
    task: str | dict[str, Any]
    """lm-eval's name of it, or a config in the form of lm-eval's YAML files."""
    metric: str
    """lm-eval's key of the score: metric, filter."""
    few_shot: bool = True
    """Whether there are examples to show that it does not test."""
    runs_code: bool = False


BENCHMARKS = (
    Benchmark("arc_challenge", "ArcC (acc)", "arc_challenge", "acc,none"),
    Benchmark("arc_easy", "ArcE (acc)", "arc_easy", "acc,none"),
    Benchmark("boolq", "BQ (acc)", "boolq", "acc,none"),
    Benchmark("hellaswag", "HS (acc)", "hellaswag", "acc,none"),
    Benchmark("openbookqa", "OQA (acc)", "openbookqa", "acc,none"),
    Benchmark("piqa", "PIQA (acc)", "piqa", "acc,none"),
    Benchmark("winogrande", "WG (acc)", "winogrande", "acc,none"),
    Benchmark("mbpp", "MBPP (pass@1)", "mbpp_instruct", "pass_at_1,extract_code", runs_code=True),
    Benchmark("gsm8k", "GSM8K (acc)", "gsm8k", "exact_match,flexible-extract"),
    Benchmark("humaneval", "HE (pass@1)", "humaneval_instruct", "pass@1,create_test", few_shot=False, runs_code=True),
)


class AdaptedLM(HFLM or object):
    """lm-eval's model class over an adapted base: inside `use`, every row has one adapter or none."""

    def __init__(self, adapted: AdaptedModel, tokenizer, batch_size: int = 8):
        if HFLM is None:
            raise UserError("The benchmarks need lm-eval: pip install --group eval.")
        self.before_answer, self.controls = _before_answer(tokenizer), control_tokens(tokenizer)
        super().__init__(pretrained=adapted.model, tokenizer=tokenizer, batch_size=batch_size, enable_thinking=False)
        self.adapted, self.slot, self.description, self.style = adapted, None, None, "input"

    @contextmanager
    def use(
        self,
        adapter: Adapter | None = None,
        description: str | None = None,
        style: PromptStyle = "description_input",
    ) -> Iterator[None]:
        """Inside, all rows have this adapter, and prompts hold the description in that style."""
        self.slot = None if adapter is None else self.adapted.load(adapter)
        self.description, self.style = description, style
        try:
            yield
        finally:
            if self.slot is not None:
                self.adapted.unload(self.slot)
            self.slot = self.description = None

    def _model_call(self, inps, *args, **kwargs):
        with self.adapted.use([self.slot] * len(inps)):
            return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, context, *args, **kwargs):
        with self.adapted.use([self.slot] * len(context)):
            return super()._model_generate(context, *args, **kwargs)

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
        if self.description is not None:  # in the first message: many templates refuse or drop a system message
            text = with_description(self.description, chat_history[0]["content"], self.style)
            first = chat_history[0] | {"content": text}
            chat_history = [first, *chat_history[1:]]
        return super().apply_chat_template(mark_chat(chat_history, self.controls), add_generation_prompt)

    def _encode_pair(self, context: str, continuation: str):
        # lm-eval puts a choice right behind the prompt; the template that the adapters know may put a space between
        return super()._encode_pair(context, self.before_answer + mark(continuation, self.controls))

    # Control tokens that a question or a choice spells out are text, as in chat and training.

    def tok_encode(self, string, add_special_tokens=None, left_truncate_len=None, **kwargs) -> list[int]:
        [ids] = encode_marked(self.tokenizer, [string])
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self, strings, padding_side="left", left_truncate_len=None, truncation=False
    ) -> tuple[Tensor, Tensor]:
        rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
        batch = self.tokenizer.pad({"input_ids": rows}, padding_side=padding_side, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]


def _before_answer(tokenizer) -> str:
    """What the chat template puts between a prompt and its answer: a space in Mistral's."""
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    prompt, whole = apply_template(tokenizer, chat[:1]), apply_template(tokenizer, chat)
    return whole[len(prompt) : whole.rindex("answer")] if whole.startswith(prompt) else ""


def _check_code(benchmark: Benchmark, allow_code_execution: bool) -> None:
    if benchmark.runs_code and not allow_code_execution:
        raise UserError(
            f"{benchmark.name} runs the code that the model writes: allow that with --allow_code_execution, on a "
            "machine where it can do no harm."
        )


@cache
def task_manager(include_defaults: bool = True):
    """lm-eval's index of its own tasks, which are thousands of files, or an empty one."""
    return TaskManager(include_defaults=include_defaults)


def run_benchmark(
    lm: AdaptedLM, benchmark: Benchmark, shots: int = 0, limit: int | None = None, allow_code_execution: bool = False
) -> tuple[float, int]:
    """lm-eval's score, 0 to 1, and the number of examples, at most `limit`; with `shots` examples as turns of the chat.

    Raises UserError where the benchmark runs code that the model wrote and that is not allowed, or its data cannot be
    had.
    """
    _check_code(benchmark, allow_code_execution)
    if benchmark.runs_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # what the metric itself asks for
    try:
        loaded = task_manager(isinstance(benchmark.task, str)).load([benchmark.task])
    except Exception as error:  # no network, no such data set, a config that lm-eval does not know: one sentence
        reason = first_line(error)
        raise UserError(f"lm-eval could not load {benchmark.name} ({reason}): its data come from the Hub.") from error
    [(name, task)] = loaded["tasks"].items()
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(FEW_SHOT_SEED)
    results = lm_eval.evaluator.evaluate(
        lm,
        loaded,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        confirm_run_unsafe_code=allow_code_execution,
    )
    return float(results["results"][name][benchmark.metric]), results["n-samples"][name]["effective"]


@dataclass
class Run:
    """One measurement of a benchmark; a row is a mean over some."""

    description: str | None = None
    adapter: Adapter | None = None
    style: PromptStyle = "input"  # whether the description is in the prompt too
    shots: int = 0


def methods(
    benchmark: Benchmark,
    descriptions: Sequence[str],
    hyperloras: Mapping[str, HyperLoRA],
    adapters: Mapping[str, Adapter],
    shots: int = 3,
    arrow: Arrow | None = None,
    nearest: NearestLoRA | None = None,
) -> Iterator[tuple[str, list[Run], Arrow | None, tuple[str, ...]]]:
    """(method, its runs on a benchmark, what routes them, what they rest on), the methods being those of
    `training.evaluate.evaluate`; they rest on the LoRAs or the hypernetwork of a name, or, "library", on Arrow's.
    """

    def generated(source, style: PromptStyle = "input") -> list[Run]:
        made = source.generate(list(descriptions))
        return [Run(text, adapter, style) for text, adapter in zip(descriptions, made, strict=True)]

    def prompted_as(style: PromptStyle, adapter: Adapter | None = None) -> list[Run]:
        """Runs under the prompts that plain LoRAs were trained with."""
        return [Run(text, adapter, style) for text in (descriptions if style != "input" else [None])]

    yield "base", [Run()], None, ()
    yield PROMPTED, [Run(text, style="description_input") for text in descriptions], None, ()
    if benchmark.few_shot and shots:
        yield "base, few-shot", [Run(shots=shots)], None, ()
    for name, method in (("average", "average LoRA"), ("multi_task", MULTI_TASK)):
        if name in adapters:
            yield method, prompted_as(adapters[name].prompt_style, adapters[name]), None, (name,)
    if arrow:
        yield "Arrow routing", prompted_as(arrow.prompt_style), arrow, ("library",)
    if nearest:
        yield NEAREST, [replace(r, style=r.adapter.prompt_style) for r in generated(nearest)], None, ("library",)
    for label, hyperlora in hyperloras.items():
        yield label, generated(hyperlora, hyperlora.config.prompt_style), None, (label,)
    for label, hyperlora in list(hyperloras.items())[:1]:
        if hyperlora.config.prompt_style == "input":
            yield f"{label}, prompted", generated(hyperlora, "description_input"), None, (label,)
    if benchmark.name in adapters:
        own = adapters[benchmark.name]
        yield ORACLE, prompted_as(own.prompt_style, own), None, (benchmark.name,)


def load_descriptions(path: str | Path, benchmarks: Sequence[Benchmark], count: int) -> dict[str, list[str]]:
    """The first `count` descriptions of each benchmark, from JSON: name -> texts. UserError where some lack."""
    data = read_json(Path(path), MAX_FILE_BYTES)
    found = {}
    for benchmark in benchmarks:
        texts = data.get(benchmark.name) if isinstance(data, dict) else None
        if (
            not isinstance(texts, list)
            or len(texts) < count
            or not all(isinstance(t, str) and t.strip() for t in texts)
        ):
            raise UserError(f'{path}: "{benchmark.name}" must be a list of at least {count} texts that are not blank.')
        found[benchmark.name] = [check_text(text, f'{path}: "{benchmark.name}"') for text in texts[:count]]
    return found


@dataclass(kw_only=True)
class Options(Sources):
    """What `python -m training.benchmarks` takes."""

    output: str = option(help="file for the results (JSON); the table goes beside it (.md) and to standard output")
    tasks: str | None = option(None, "folder of the tasks that were trained on: their LoRAs are Arrow's library")
    benchmarks: list[str] | None = option(None, "names of some of the ten; by default all that may run")
    descriptions: str = option(str(DESCRIPTIONS), "JSON file of the benchmarks' evaluation descriptions")
    descriptions_each: int = option(3, "descriptions of a benchmark that a score is the mean over", least=1)
    shots: int = option(3, "training examples in the prompt of the few-shot row; 0: no such row", least=0)
    arrow_top_k: int = option(3, "LoRAs that Arrow routes a token to", least=1)
    arrow_temperature: float = option(1.0, "of the softmax over their scores", above=0)
    limit: int | None = option(None, "examples of a benchmark, for a quick look; all by default", least=1)
    batch_size: int = option(8, "rows in one forward pass", least=1)
    allow_code_execution: bool = option(False, "run HumanEval and MBPP, which execute code that the model writes")


def choose(names: Sequence[str] | None, allow_code_execution: bool) -> list[Benchmark]:
    """The benchmarks of these names, or all that run no code unless that is allowed. UserError for an unknown one."""
    known = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    if unknown := set(names or []) - set(known):
        raise UserError(f"There is no benchmark {min(unknown)!r}: choose among {', '.join(known)}.")
    if names:
        for name in names:
            _check_code(known[name], allow_code_execution)
        return [known[name] for name in names]
    left_out = [name for name, benchmark in known.items() if benchmark.runs_code and not allow_code_execution]
    if left_out:
        print(f"Left out, since they run the model's code: {', '.join(left_out)} (--allow_code_execution).", flush=True)
    return [benchmark for name, benchmark in known.items() if name not in left_out]


def load_rows(path: str | Path, settings: Mapping[str, Any]) -> list[dict]:
    """The rows that an earlier run left; none where there is no file. UserError where it had other settings."""
    if not Path(path).exists():
        return []
    rows, before = read_results(path)
    if before != settings:
        raise UserError(f"{path} holds results that were measured with other settings: choose another output.")
    return rows


NO_MATTER = (
    "output",
    "benchmarks",
    "batch_size",
    "device",
    "allow_code_execution",
)  # options that rows do not depend on


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    check_output(options.output)
    chosen = choose(options.benchmarks, options.allow_code_execution)
    descriptions = load_descriptions(options.descriptions, chosen, options.descriptions_each)
    settings = {key: value for key, value in asdict(options).items() if key not in NO_MATTER}
    rows = load_rows(options.output, settings)
    adapted, tokenizer, hyperloras, adapters = options.load()
    hyperloras = {label: h for label, h in hyperloras.items() if h.config.task_input == "text"}
    lm = AdaptedLM(adapted, tokenizer, options.batch_size)
    trained = load_tasks(options.tasks) if options.tasks else []
    library = [adapters[task.name] for task in trained if task.name in adapters]
    arrow = Arrow(adapted, library, options.arrow_top_k, options.arrow_temperature) if library else None
    embedder = next(iter(hyperloras.values())).embedder if hyperloras else None
    nearest = NearestLoRA(embedder, trained, adapters) if library and embedder else None
    base, content = base_digest(adapted.model), {name: tensor_digest(_tensors(a)) for name, a in adapters.items()}
    library_of = [[content[task.name], task.descriptions] for task in trained if task.name in adapters]
    content["library"] = value_digest(library_of)
    content |= {label: tensor_digest(h.state_dict().values()) for label, h in hyperloras.items()}
    for benchmark in chosen:
        texts = descriptions[benchmark.name]
        for method, runs, router, on in methods(benchmark, texts, hyperloras, adapters, options.shots, arrow, nearest):
            asked = [(run.description, run.style, run.shots) for run in runs]
            of = value_digest([base, asked, *(content[name] for name in on)])
            before = next((r for r in rows if (r["method"], r["task"]) == (method, benchmark.name)), None)
            if before and before.get("of") == of:
                continue
            rows = [row for row in rows if row is not before]
            rows.append(_row(lm, benchmark, method, runs, router, options) | {"of": of})
            write_results(options.output, rows, settings)
            print(f"{benchmark.name}, {method}: {rows[-1]['score']:.3f}", flush=True)
    table = paper_table(rows, labels={benchmark.name: benchmark.label for benchmark in BENCHMARKS})
    print(table)
    write_table(options.output, table)


def _tensors(adapter: Adapter) -> Iterator[Tensor]:
    yield torch.tensor(adapter.scale)
    for module in sorted(adapter.weights):
        yield from adapter.weights[module]


def _row(
    lm: AdaptedLM, benchmark: Benchmark, method: str, runs: Sequence[Run], router: Arrow | None, options: Options
) -> dict:
    """A method's row on a benchmark, in the form of `training.evaluate.evaluate`; "scores" are those of its runs."""
    scores, examples = [], 0
    for each in runs:
        with lm.use(each.adapter, each.description, each.style), router.use() if router else nullcontext():
            value, examples = run_benchmark(lm, benchmark, each.shots, options.limit, options.allow_code_execution)
        scores.append(value)
    described = runs[0].description is not None
    return {
        "method": method,
        "split": "benchmarks",
        "kind": UNSEEN if described else NO_DESCRIPTION,
        "task": benchmark.name,
        "seed": 0,
        "score": statistics.fmean(scores),
        "scores": scores,
        "descriptions": len(runs) if described else 0,
        "examples": examples,
    }


if __name__ == "__main__":
    run(main)
