"""What is measured over SmolLM2: every method on trained and held-out tasks, everyday requests, chats of several turns,
and open requests; and a short table of it, beside what was to be reached.

python -m training.smollm2.evaluation --tasks DIR --base DIR --output DIR [--hyperlora DIR] [--adapters DIR]
    [--instruction_induction DIR] [--requests FILE ..]

--tasks has the folders trained, near and far, as the build's folder `tasks` has. OUTPUT gets results.json, its
tables (results.md), and answers.jsonl, with which the same command goes on where it was killed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from random import Random

from hyperlora.adapted import AdaptedModel
from hyperlora.config import read_json
from hyperlora.errors import UserError
from hyperlora.files import check_writable
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from training.evaluate import Settings, evaluate, forms
from training.parts.answers import Answers
from training.parts.baselines import generate
from training.parts.conversations import TURNS, converse
from training.parts.kinds import UNSEEN
from training.parts.options import option, parse, run
from training.parts.requests import PATH, as_tasks, everyday_requests
from training.parts.results import MULTI_TASK, PROMPTED, prompted, write_results, write_table
from training.parts.scoring import Trial, fitting, is_long
from training.parts.sources import Sources
from training.smollm2.open_requests import measure_open, open_requests
from training.smollm2.report import DIALOGUES, EVERYDAY, FAR, INDUCTION, NEAR, OURS, REQUESTS, TRAINED, report
from training.tasks import Example, Task, load_tasks

DIALOGUES_PATH = Path(__file__).with_name("dialogues.json")
EXACT = 10**6  # characters: no answer of a request or dialogue is too long to be compared with all accepted ones
TRAINED_KIND, OTHER_KIND = "trained kind", "other kind"
# Tasks of instruction induction of whose kind no trained task is: neither a real one nor one of the text suite.
OTHER_KINDS = {
    *("active_to_passive", "informal_to_formal", "larger_animal", "orthography_starts_with", "rhymes"),
    *("sentence_similarity", "synonyms", "antonyms", "word_in_context"),
}


@dataclass
class Plan:
    """How much is measured."""

    examples: int = option(4, "test examples a task and seed", least=1)
    descriptions: int = option(1, "descriptions a task and seed", least=1)
    seeds: int = option(3, "evaluation seeds; each draws its own examples and descriptions", least=1)
    trained: int = option(60, "trained tasks to measure, those with LoRAs of their own first", least=1)
    turned: int = option(30, "trained and near tasks whose fourth turn is measured", least=0)
    open_requests: int = option(40, "open requests to measure", least=0)
    open_tokens: int = option(96, "tokens of an answer to an open request", least=1)
    max_new_tokens: int = option(128, "tokens of any other answer", least=1)
    batch_size: int = option(256, "rows decoded together", least=1)


def dialogues(path: str | Path = DIALOGUES_PATH) -> list[Task]:
    """Twenty chats whose last message needs an earlier one, each a task with one test, whose answers are accepted."""
    return [
        Task(
            f"dialogue-{number:02}",
            [],
            [entry["description"]],
            test=[
                Example(
                    input=entry["input"],
                    output=entry["outputs"][0],
                    outputs=entry["outputs"],
                    turns=[(message, answer) for message, answer in entry["turns"]],
                )
            ],
        )
        for number, entry in enumerate(read_json(path), 1)
    ]


def splits_of(
    tasks: Mapping[str, Sequence[Task]],
    instruction_induction: str | Path | None = None,
    requests: Sequence[str | Path] = (),
) -> tuple[dict[str, list[Task]], dict[str, list[Task]], dict[str, dict[str, str]]]:
    """What is drawn from, what is measured whole, and split -> task -> whether its kind was trained.

    tasks: "trained", "near" and "far". Raises UserError where two files of requests have one name.
    """
    names = {"trained": TRAINED, "near": NEAR, "far": FAR}
    drawn = {names[name]: list(own) for name, own in tasks.items() if own}
    marks: dict[str, dict[str, str]] = {}
    if instruction_induction:
        found = load_tasks(instruction_induction)
        marks[INDUCTION] = {
            f"induction_{task.name}": OTHER_KIND if task.name in OTHER_KINDS else TRAINED_KIND for task in found
        }
        drawn[INDUCTION] = [replace(task, name=f"induction_{task.name}") for task in found]
    whole = {}
    for path in (PATH, *requests):
        name = EVERYDAY if path == PATH else f"{REQUESTS} of {Path(path).stem}"
        if name in whole:
            raise UserError(f"Two files of requests are called {Path(path).stem}: rename one.")
        asked = everyday_requests(path)
        whole[name] = as_tasks(asked)
        marks[name] = {
            task.name: TRAINED_KIND if request.trained else OTHER_KIND
            for task, request in zip(whole[name], asked, strict=True)
        }
    whole[DIALOGUES] = dialogues()
    return drawn, whole, marks


def run_evaluation(
    folder: str | Path,
    adapted: AdaptedModel,
    tokenizer,
    base: str,
    tasks: Mapping[str, Sequence[Task]],
    hyperlora: HyperLoRA | None,
    adapters: Mapping[str, Adapter],
    plan: Plan | None = None,
    instruction_induction: str | Path | None = None,
    requests: Sequence[str | Path] = (),
) -> bool:
    """Measure all, write FOLDER/results.json and its tables, results.md, and say whether the hypernetwork's adapters do
    best with the description in the prompt too, on trained tasks: what `HyperLoRAConfig.describe` is.

    base: a digest of the base as it is held. tasks: "trained", all that the hypernetwork was trained on, "near" and
    "far"; each may be absent. adapters: as in `training.evaluate`. A killed call is gone on with by the same call.
    """
    folder, plan = Path(folder), plan or Plan()
    check_writable(folder)
    saved = Answers(folder / "answers.jsonl", base)
    trained = list(tasks.get("trained", ()))
    told = [task for task in trained if task.test and task.eval_descriptions]  # open requests have none that are unseen
    measured = sorted(told, key=lambda task: (task.name not in adapters, Random(task.name).random()))
    drawn, whole, marks = splits_of({**tasks, "trained": measured[: plan.trained]}, instruction_induction, requests)
    hyperloras = {f"{OURS} {hyperlora.config.head}": hyperlora} if hyperlora else {}
    common = {"kinds": [UNSEEN], "chat": True, "max_new_tokens": plan.max_new_tokens, "batch_size": plan.batch_size}
    settings = Settings(plan.examples, plan.descriptions, plan.seeds, **common)
    every = Settings(examples=EXACT, descriptions=1, seeds=1, f1_above=EXACT, **common)
    given = trained, hyperloras, adapters
    rows = evaluate(adapted, tokenizer, drawn, *given, settings, saved)
    rows += evaluate(adapted, tokenizer, whole, *given, every, saved)
    turned = [t for t in (*drawn.get(TRAINED, ()), *drawn.get(NEAR, ())) if len(t.test) >= TURNS]
    turned = sorted(turned, key=lambda task: Random(task.name).random())[: plan.turned]
    rows += _conversations(adapted, tokenizer, turned, hyperloras, adapters, settings, saved)
    asked = open_requests()[: plan.open_requests]
    methods: dict[str, list[Adapter | None]] = {"base": [None] * len(asked)}
    methods |= {MULTI_TASK: [adapters["multi_task"]] * len(asked)} if "multi_task" in adapters else {}
    for label, each in hyperloras.items() if asked else ():
        methods[label] = generate(each, [request.description for request in asked])
    open_rows = []
    if asked:
        open_rows = measure_open(adapted, tokenizer, asked, methods, plan.open_tokens, plan.batch_size, saved)
    facts = {field.name: getattr(plan, field.name) for field in fields(Plan)} | {"marks": marks, "open": open_rows}
    facts["f1"] = [task.name for own in drawn.values() for task in own if is_long(task, settings.f1_above)]
    write_results(folder / "results.json", rows, facts)
    text, describe = report(rows, open_rows, marks)
    write_table(folder / "results.json", text)
    return describe


def _conversations(
    adapted: AdaptedModel,
    tokenizer,
    tasks: Sequence[Task],
    hyperloras: Mapping[str, HyperLoRA],
    adapters: Mapping[str, Adapter],
    settings: Settings,
    saved: Answers,
) -> list[dict]:
    """The first and the fourth turn of the base, of the multi-task LoRA and of the hypernetwork, in their forms."""
    trials = []
    for task in tasks:
        examples = fitting(adapted, tokenizer, task, Random(f"turns {task.name}").sample(task.test, TURNS))
        description = (task.eval_descriptions or task.descriptions)[0]
        trials.append(Trial(task, examples, UNSEEN, description))
    asked = {PROMPTED: [replace(trial, style="description_input") for trial in trials]}
    made: dict[str, tuple[str, list[Adapter]]] = {}
    if "multi_task" in adapters:
        made[MULTI_TASK] = adapters["multi_task"].prompt_style, [adapters["multi_task"]] * len(trials)
    if trials:
        for label, hyperlora in hyperloras.items():
            made[label] = hyperlora.config.prompt_style, generate(hyperlora, [trial.description for trial in trials])
    for method, (style, each) in made.items():
        for form in forms(style):
            name = prompted(method) if form != "input" and style == "either" else method
            asked[name] = [replace(t, adapter=a, style=form) for t, a in zip(trials, each, strict=True)]
    rows = []
    for method, own in asked.items() if trials else ():
        rows += converse(adapted, tokenizer, method, own, settings, saved)
        saved.forget_adapters()
        print(f"Turns, {method}: done", flush=True)
    return rows


@dataclass(kw_only=True)
class Options(Plan, Sources):
    """What `python -m training.smollm2.evaluation` takes."""

    tasks: str = option(help="folder with the folders trained, near and far, of which some may be absent")
    output: str = option(help="folder for the results")
    instruction_induction: str | None = option(None, "folder of the benchmark's tasks")
    requests: list[str] | None = option(None, "files of other everyday requests, each a split")


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    found = {name: Path(options.tasks) / name for name in ("trained", "near", "far")}
    tasks = {name: load_tasks(path) for name, path in found.items() if path.is_dir()}
    if not tasks:
        raise UserError(f"{options.tasks} has none of the folders trained, near and far: the build's `tasks` has them.")
    splits_of(tasks, options.instruction_induction, options.requests or ())  # before the base is loaded
    adapted, tokenizer, hyperloras, adapters = options.load()
    if len(hyperloras) > 1:
        raise UserError("Give one hypernetwork: its results are one report.")
    hyperlora = next(iter(hyperloras.values()), None)
    run_evaluation(
        options.output, adapted, tokenizer, options.digest(adapted.model), tasks, hyperlora, adapters, options,
        options.instruction_induction, options.requests or (),
    )  # fmt: skip
    print((Path(options.output) / "results.md").read_text())


if __name__ == "__main__":
    run(main)
