"""The paper's Section 5 and Figure 3, from what the other stages leave: figures as PNG, their data as JSON.

python -m training.analysis --output DIR [--recon DIR .. --results FILE ..]
    [--tasks DIR --adapters DIR [--held_out DIR ..] [--base BASE]] [--hyperlora DIR]

figure-3   relative performance against reconstruction error, a point for each of several hypernetworks
figure-4   for each of a few target tasks: how alike its LoRA is to every task's, and how well every task's LoRA does on
           it, against how alike the tasks' descriptions are
figure-5   t-SNE of the task encoder's and the last block's output for descriptions of the target tasks
figure-10  as figure-4, the LoRAs compared by their dW

Relative performance is a score divided by that of the task's own LoRA. Where that scores 0 there is none: the task is
left out and named. A figure whose inputs are not given is not drawn.
"""

import math
import random
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor

from hyperlora.adapted import AdaptedModel
from hyperlora.base import Precision, load_base, precision
from hyperlora.config import HyperLoRAConfig, read_json
from hyperlora.embedder import LAST_TOKEN, MINILM, load_embedder
from hyperlora.errors import UserError
from hyperlora.generator import CONFIG, HyperLoRA
from hyperlora.lora import Adapter
from training.parts.digest import base_digest, digest, value_digest
from training.parts.figures import (
    MAX_TARGETS,
    OUTPUTS,
    axes_of,
    draw_activations,
    draw_against_descriptions,
    draw_against_error,
    means_text,
    number_text,
    r_text,
    save_figure,
)
from training.parts.kinds import NO_DESCRIPTION, SEEN, UNSEEN, pick_descriptions
from training.parts.options import option, parse, run
from training.parts.results import MAX_FILE_BYTES, ORACLE, means, read_results, write_results
from training.parts.scoring import Trial, fitting, score
from training.tasks import Task, descriptions_of, load_tasks


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's r; None where it says nothing: fewer than three points, or one side constant."""
    try:
        return statistics.correlation(x, y) if len(x) > 2 else None
    except statistics.StatisticsError:
        return None


# ---- scores, as the other stages write them ----


# ---- Figure 3 ----


def against_error(folders: Sequence[str | Path], results: Sequence[str | Path], metric: str = "score") -> dict:
    """Fig. 3: relative performance of reconstruction-trained hypernetworks against their error per element.

    folders: as `training.recon` leaves them. results: one file of `training.evaluate` a folder, of its trained tasks'
    tests with their own LoRAs (for descriptions: the seen ones). Only tasks measured in all files count, so that a
    hypernetwork of more tasks is not judged by others. Gives {"metric", "tasks", "left_out", "r", "instances"}, an
    instance {"head", "trained_tasks", "error", "relative_performance": mean over tasks, "ratio_of_means", "by_task"}.
    """
    instances, pairs = [], []
    for folder, path in zip(folders, results, strict=True):
        config, recon = HyperLoRAConfig.load(Path(folder) / CONFIG), Path(folder) / "recon.json"
        error, trained = _read_recon(recon)
        scores = means(read_results(path, metric)[0], "method", "kind", "task", metric=metric)
        method, kind = f"HyperLoRA {config.head}", SEEN if config.task_input == "text" else NO_DESCRIPTION
        own = kind if any(of[:2] == (ORACLE, kind) for of in scores) else NO_DESCRIPTION  # kind: as they were trained
        keys = {task: ((method, kind, task), (ORACLE, own, task)) for task in trained}
        found = {task: (scores[a], scores[b]) for task, (a, b) in keys.items() if a in scores and b in scores}
        if not found:
            raise UserError(f"{path} scores no task of {recon} both with {method} and with its own LoRA: {ORACLE}.")
        instances.append({"head": config.head, "trained_tasks": len(trained), "error": error})
        pairs.append(found)
    common = [task for task in pairs[0] if all(task in found for found in pairs)]
    measured = [task for task in common if all(found[task][1] > 0 for found in pairs)]
    if not measured:
        raise UserError("The results for Figure 3 share no task whose own LoRA scores above 0.")
    for instance, found in zip(instances, pairs, strict=True):
        ratios = {task: found[task][0] / found[task][1] for task in measured}
        own, best = (statistics.fmean(found[task][side] for task in measured) for side in (0, 1))
        instance["relative_performance"] = statistics.fmean(ratios.values())
        instance |= {"ratio_of_means": own / best, "by_task": ratios}
    return {
        "metric": metric,
        "tasks": measured,
        "left_out": [task for task in common if task not in measured],
        "r": pearson([i["error"] for i in instances], [i["relative_performance"] for i in instances]),
        "instances": instances,
    }


def _read_recon(path: Path) -> tuple[float, list[str]]:
    """The mean error per element, and the trained tasks."""
    data = read_json(path, MAX_FILE_BYTES)
    data = data if isinstance(data, dict) else {}
    error, targets = data.get("error"), data.get("targets")
    good = type(error) in (int, float) and math.isfinite(error) and isinstance(targets, list)
    if not good or not all(isinstance(t, dict) and isinstance(t.get("task"), str) for t in targets):
        raise UserError(f'{path} must hold "error" and "targets" as training.recon writes them: run it to its end.')
    return error, [target["task"] for target in targets]


# ---- Figures 4 and 10 ----


def factor_cosine(first: Adapter, second: Adapter) -> float | None:
    """Cosine of all entries of A and B, of all modules and layers, as one vector (Sec. 5.1). None where one is zero.

    Raises UserError where they differ in shape.
    """
    _check_alike(first, second, rank=True)
    dots = torch.zeros(3, dtype=torch.float64)
    for module, sides in first.weights.items():
        for x, y in zip(sides, second.weights[module], strict=True):
            dots += torch.stack([(x * y).sum(), x.square().sum(), y.square().sum()]).double()
    inner, *squares = dots.tolist()
    return _cosine(inner, math.sqrt(math.prod(squares)))


def delta_cosine(first: Adapter, second: Adapter) -> float | None:
    """Cosine of ΔW, of all modules and layers, as one vector (App. E). None where one is zero.

    The ΔW [d_out, d_in] are not formed: <BA, B'A'> = tr(Aᵀ Bᵀ B' A') is the sum of (Bᵀ B') * (A A'ᵀ), [r, r'] a layer.
    Raises UserError where they differ in modules, layers or sizes; the ranks may differ.
    """
    _check_alike(first, second)
    inner = 0.0
    for module, (A, B) in first.weights.items():
        other_A, other_B = second.weights[module]
        inner += float(((B.mT @ other_B) * (A @ other_A.mT)).sum())
    return _cosine(first.scale * second.scale * inner, first.norm() * second.norm())


def _cosine(inner: float, norms: float) -> float | None:
    return max(-1.0, min(1.0, inner / norms)) if norms else None


def _check_alike(first: Adapter, second: Adapter, rank: bool = False) -> None:
    def sizes(adapter: Adapter) -> dict:
        shapes = {m: (A.shape[0], A.shape[2], B.shape[1]) for m, (A, B) in sorted(adapter.weights.items())}
        return shapes | ({"rank": adapter.rank} if rank else {})

    if sizes(first) != sizes(second):
        raise UserError(
            f"The LoRAs differ in shape, so they cannot be compared: {sizes(first)} and {sizes(second)} "
            "(module: layers, d_in, d_out)."
        )


def with_loras(tasks: Iterable[Task], folder: str | Path) -> list[Task]:
    """The tasks whose own LoRA is in FOLDER/NAME, as `training.lora` writes it. UserError where there are none."""
    found = [task for task in tasks if (Path(folder) / task.name).is_dir()]
    if not found:
        raise UserError(f"{folder} holds no LoRA of these tasks: train one a task with training.lora.")
    return found


def lora_of(name: str) -> str:
    """The method of a results row that scores one task's LoRA on another task."""
    return f"LoRA of {name}"


def cross_scores(
    adapted: AdaptedModel,
    tokenizer,
    targets: Sequence[Task],
    tasks: Sequence[Task],
    folder: str | Path,
    path: str | Path,
    examples: int = 24,
    batch_size: int = 256,
) -> list[dict]:
    """Exact match of every task's LoRA, the targets' own included, on test examples of every target, as rows.

    The LoRAs lie in `folder`, and one is in memory at a time. The results file `path` is written after each LoRA; pairs
    that it holds already are not measured again, unless the base, the LoRA or the target's tests are others now.
    UserError where it was measured with other settings.
    """
    path, settings = Path(path), {"examples": examples}
    rows, before = read_results(path) if path.exists() else ([], settings)
    if any(before.get(key) != value for key, value in settings.items()):
        raise UserError(f"{path} was measured with other settings than {settings}: name another file, or remove it.")
    kept = {(row["method"], row["task"]): row for row in rows}
    base = base_digest(adapted.model)
    drawn = {}
    for task in targets:
        some = random.Random(task.name).sample(task.test, min(examples, len(task.test)))
        if some := fitting(adapted, tokenizer, task, some):
            drawn[task.name] = some
    names = list(dict.fromkeys(task.name for task in [*targets, *tasks]))
    for i, name in enumerate(names, 1):
        methods = {target.name: ORACLE if target.name == name else lora_of(name) for target in targets}
        lora = digest(Path(folder) / name)
        of = {target: value_digest([base, lora, some]) for target, some in drawn.items()}
        pairs = {target: (methods[target], target) for target in drawn}
        missing = [t for t in targets if t.name in drawn and kept.get(pairs[t.name], {}).get("of") != of[t.name]]
        if not missing:
            continue
        adapter = Adapter.from_pretrained(Path(folder) / name)
        if adapter.prompt_style != "input":
            raise UserError(
                f"The LoRA {name} was trained with descriptions in its prompts; Figure 4 measures on inputs alone."
            )
        trials = [Trial(target, drawn[target.name], adapter=adapter) for target in missing]
        for trial, value in zip(trials, score(adapted, tokenizer, trials, batch_size), strict=True):
            row = {"method": methods[trial.task.name], "split": "targets", "kind": NO_DESCRIPTION, "seed": 0}
            row |= {"task": trial.task.name, "score": value, "descriptions": 0, "examples": len(trial.examples)}
            kept[pairs[trial.task.name]] = row | {"of": of[trial.task.name]}
        write_results(path, list(kept.values()), settings)
        print(f"LoRA {i} of {len(names)}, {name}: scored on {len(missing)} tasks", flush=True)
    return list(kept.values())


def compare_loras(
    targets: Sequence[Task], tasks: Sequence[Task], folder: str | Path, embedder, rows: Sequence[dict] | None = None
) -> list[dict]:
    """Every target's LoRA beside every other task's, all of them in `folder`: the points of Fig. 4 and Fig. 10.

    embedder: an object with `embed`. rows: scores of each LoRA on each target, as `cross_scores` gives them. A point:
    {"target", "lora", "descriptions": cosine of the tasks' mean embeddings, "factors", "delta": cosines of the LoRAs,
    "performance": relative to the target's own LoRA}, None where a value is not defined or not known.
    """
    folder, scores = Path(folder), means(rows or [], "method", "kind", "task")
    every = {task.name: task for task in [*targets, *tasks]}.values()
    embedded = {task.name: embedder.embed(descriptions_of(task)).double().mean(0) for task in every}
    own = {target.name: Adapter.from_pretrained(folder / target.name) for target in targets}
    points = []
    for task in tasks:
        adapter = Adapter.from_pretrained(folder / task.name)
        for target in targets:
            if target.name == task.name:
                continue
            try:
                cosines = factor_cosine(own[target.name], adapter), delta_cosine(own[target.name], adapter)
            except UserError as error:
                raise UserError(f"{folder}, {target.name} and {task.name}: {error}") from None
            mine = scores.get((lora_of(task.name), NO_DESCRIPTION, target.name))
            best = scores.get((ORACLE, NO_DESCRIPTION, target.name))
            points.append(
                {
                    "target": target.name,
                    "lora": task.name,
                    "descriptions": float(torch.cosine_similarity(embedded[target.name], embedded[task.name], dim=0)),
                    "factors": cosines[0],
                    "delta": cosines[1],
                    "performance": mine / best if best and mine is not None else None,
                }
            )
    order = {target.name: i for i, target in enumerate(targets)}
    return sorted(points, key=lambda point: order[point["target"]])


def against_descriptions(points: Sequence[dict], measures: Sequence[str]) -> dict:
    """Fig. 4 (measures "factors", "performance") and Fig. 10 ("delta"), from the points of `compare_loras`.

    Gives {"r": measure -> target -> Pearson's r with the descriptions' cosine, "mean_r": measure -> mean over targets,
    "left_out": measure -> targets for which no point has it, "points": those given, with these measures}. An r that is
    not defined is None and not in the mean.
    """
    targets = list(dict.fromkeys(point["target"] for point in points))
    r = {measure: {target: pearson(*axes_of(points, target, measure)) for target in targets} for measure in measures}
    known = {measure: [value for value in r[measure].values() if value is not None] for measure in measures}
    return {
        "r": r,
        "mean_r": {measure: statistics.fmean(values) if values else None for measure, values in known.items()},
        "left_out": {m: [target for target in targets if not axes_of(points, target, m)[0]] for m in measures},
        "points": [{key: p[key] for key in ("target", "lora", "descriptions", *measures)} for p in points],
    }


# ---- Figure 5 ----


@torch.no_grad()
def activations(
    hyperlora: HyperLoRA, targets: Sequence[Task], trained: Sequence[Task] = (), count: int = 3, seed: int = 0
) -> dict:
    """Fig. 5: what descriptions become inside the hypernetwork, in two dimensions by t-SNE.

    Of each target up to `count` descriptions that it was not trained on, or, of a task that is in `trained` and has no
    others, trained ones. Gives {"perplexity", "silhouette": {"task_encoder", "last_block"}, "points"}, a point
    {"task", "kind", "description", "task_encoder": [x, y], "last_block": [x, y]}. The silhouette, from -1 to 1, says
    how well the tasks part in the outputs themselves, without t-SNE: task_encoder [n, 64], and last_block, all that the
    heads see of one description as one vector. UserError where there are fewer than four descriptions.
    """
    if hyperlora.config.task_input != "text":
        raise UserError("Figure 5 needs a hypernetwork that reads descriptions; this one numbers its tasks.")
    points = []
    for task in targets:
        for kind in (UNSEEN, SEEN):
            draw = random.Random(f"{seed} {task.name}")
            if texts := pick_descriptions(task, kind, trained, count, draw):
                points += [{"task": task.name, "kind": kind, "description": text} for text in texts]
                break
    if len(points) < 4:
        raise UserError(f"Figure 5 needs at least four descriptions, and these tasks have {len(points)}.")
    training = hyperlora.training
    hyperlora.eval()
    inputs = hyperlora.embedder.embed([point["description"] for point in points])
    inputs = inputs.to(hyperlora.network.task_encoder[0].weight)
    blocks = [hyperlora.network.features(part).flatten(1).cpu() for part in inputs.split(16)]  # S has MBs a row
    outputs = {"task_encoder": hyperlora.network.encode(inputs).cpu(), "last_block": torch.cat(blocks)}
    hyperlora.train(training)
    labels = [point["task"] for point in points]
    perplexity = min(30.0, (len(points) - 1) / 3)  # that many neighbours are looked at, times three
    silhouette = {}
    for name, output in outputs.items():
        placed = _tsne(output, perplexity, seed)
        for point, place in zip(points, placed, strict=True):
            point[name] = place
        parts = 1 < len(set(labels)) < len(labels)  # otherwise there is none
        silhouette[name] = float(silhouette_score(output.numpy(), labels)) if parts else None
    return {"perplexity": perplexity, "silhouette": silhouette, "points": points}


def _tsne(output: Tensor, perplexity: float, seed: int) -> list[list[float]]:
    """[n, d] -> n places [x, y], the same for the same seed."""
    placed = TSNE(perplexity=perplexity, random_state=seed).fit_transform(output.float().numpy())
    return [[float(x), float(y)] for x, y in placed]


# ---- the command ----


def _spread(tasks: Sequence[Task], count: int) -> list[Task]:
    """At most `count` of the tasks, evenly over their order."""
    count = min(count, len(tasks))
    return [tasks[i * len(tasks) // count] for i in range(count)]


@dataclass(kw_only=True)
class Options:
    """What `python -m training.analysis` takes."""

    output: str = option(help="folder for the figures (PNG) and their data (JSON)")
    recon: list[str] | None = option(None, "Fig. 3: folders that training.recon wrote")
    results: list[str] | None = option(None, "Fig. 3: of each, in that order, training.evaluate's file")
    metric: Literal["score", "rouge_l"] = option("score", "Fig. 3: exact match or ROUGE-L of these files")
    tasks: str | None = option(None, "folder of the tasks that were trained on")
    held_out: list[str] | None = option(None, "folders of other tasks: the targets, otherwise --tasks")
    targets: int = option(
        10,
        "at most so many target tasks, spread over all: a panel each (Fig. 4, 10), a colour (5)",
        least=1,
        most=MAX_TARGETS,
    )
    adapters: str | None = option(None, "Fig. 4, 10: folder of the tasks' and the targets' own LoRAs")
    base: str | None = option(None, "Fig. 4: base model, to score every LoRA on every target")
    scores: str | None = option(None, "Fig. 4: file of these scores, kept and gone on with; OUTPUT/scores.json")
    examples: int = option(24, "Fig. 4: test examples a target", least=1)
    batch_size: int = option(256, "Fig. 4: rows decoded together", least=1)
    base_dtype: Precision = option("float32", "how the base is held")
    device: str = option("cpu", "where the base is: cpu, cuda, ...")
    hyperlora: str | None = option(None, "Fig. 5: checkpoint; its description encoder serves Fig. 4 and 10 too")
    descriptions: int = option(3, "Fig. 5: descriptions a task", least=1)
    seed: int = option(0, "Fig. 5: of the descriptions' draw and of t-SNE", least=0)


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    _check(options)
    missing, output = [], Path(options.output)

    measured = bool(options.recon and options.results)
    if measured:
        data = against_error(options.recon, options.results, options.metric)
        save_figure(output, "figure-3", data, draw_against_error(data))
        _name_left_out("Figure 3", data["left_out"])
        print(f"Figure 3: {r_text(data['r'])} over {len(data['instances'])} hypernetworks.", flush=True)
    else:
        missing.append("Figure 3 needs --recon and --results.")

    tasks = load_tasks(options.tasks) if options.tasks else []
    targets = [task for folder in options.held_out or [] for task in load_tasks(folder)] or tasks
    compares, probes = bool(tasks and options.adapters), bool(targets and options.hyperlora)
    hyperlora = HyperLoRA.from_pretrained(options.hyperlora) if options.hyperlora else None
    reads = hyperlora is not None and hyperlora.config.task_input == "text"
    wants_base = reads and hyperlora.config.embedder == LAST_TOKEN and (compares or probes)
    if wants_base and not options.base:
        raise UserError(f"{options.hyperlora} reads descriptions with its base model: give it as --base.")
    base = None
    if options.base and (compares or wants_base):
        base = load_base(options.base, device=options.device, **precision(options.base_dtype))
    if wants_base:
        hyperlora.embedder = load_embedder(LAST_TOKEN, base=base)

    if probes and reads:
        data = activations(hyperlora, _spread(targets, options.targets), tasks, options.descriptions, options.seed)
        save_figure(output, "figure-5", data, draw_activations(data))
        parts = ", ".join(f"{OUTPUTS[name]} {number_text(value)}" for name, value in data["silhouette"].items())
        print(f"Figure 5: silhouette of the tasks: {parts}.", flush=True)
    elif probes:
        missing.append(f"Figure 5 needs a hypernetwork that reads descriptions; {options.hyperlora} numbers its tasks.")
    else:
        missing.append("Figure 5 needs --hyperlora, and --tasks or --held_out.")

    if compares:
        embedder = hyperlora.embedder if reads else load_embedder(MINILM)
        missing += _compare(options, with_loras(tasks, options.adapters), targets, embedder, base)
    else:
        missing.append("Figures 4 and 10 need --tasks and --adapters.")

    if not (measured or compares or (probes and reads)):
        raise UserError(" ".join(missing))
    for sentence in missing:
        print(sentence, file=sys.stderr)


def _check(options: Options) -> None:
    if options.recon and options.results and len(options.recon) != len(options.results):
        raise UserError(
            f"--recon names {len(options.recon)} folders and --results {len(options.results)} files: give one a folder."
        )


def _compare(
    options: Options, tasks: Sequence[Task], targets: Sequence[Task], embedder, base: tuple | None
) -> list[str]:
    """Write Fig. 4 and 10; gives what is missing for the whole of them, in sentences."""
    targets = _spread(with_loras(targets, options.adapters), options.targets)
    path = Path(options.scores or Path(options.output) / "scores.json")
    if options.scores and not base and not path.exists():
        raise UserError(f"There is no file {path}: give --base to measure the scores.")
    if base:
        model, tokenizer = base
        modules = list(Adapter.from_pretrained(Path(options.adapters) / targets[0].name).weights)
        adapted = AdaptedModel(model, modules)
        sizes = options.examples, options.batch_size
        rows = cross_scores(adapted, tokenizer, targets, tasks, options.adapters, path, *sizes)
    else:
        rows = read_results(path)[0] if path.exists() else None
    points = compare_loras(targets, tasks, options.adapters, embedder, rows)
    if not points:
        raise UserError(f"{options.adapters} holds only one task's LoRA, which there is nothing to compare with.")
    upper_and_lower = ["factors"] if rows is None else ["factors", "performance"]
    for name, measures in (("figure-4", upper_and_lower), ("figure-10", ["delta"])):
        data = against_descriptions(points, measures)
        save_figure(options.output, name, data, draw_against_descriptions(data))
        print(f"{name.replace('-', ' ').capitalize()}: {means_text(data)}.", flush=True)
        if "performance" in measures:
            _name_left_out("Figure 4", data["left_out"]["performance"])
    return [] if rows is not None else ["The lower half of Figure 4, relative performance, needs --base or --scores."]


def _name_left_out(figure: str, names: Sequence[str]) -> None:
    if names:
        reason = "the own LoRA of these tasks scores 0 or has no score, so there is no relative performance"
        print(f"{figure}: {reason}: {', '.join(names)}.", file=sys.stderr)


if __name__ == "__main__":
    run(main)
