import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import image
from sklearn.metrics import silhouette_score

from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from training import analysis
from training.analysis import (
    activations,
    against_descriptions,
    against_error,
    compare_loras,
    cross_scores,
    delta_cosine,
    factor_cosine,
    lora_of,
    main,
    pearson,
)
from training.parts.adapters import save_adapters
from training.parts.kinds import SEEN, UNSEEN
from training.parts.library import pack
from training.parts.results import read_results, write_results
from training.recon import ReconConfig, build, train
from training.tasks import Task


def flat_delta(adapter) -> torch.Tensor:
    """All ΔW of an adapter as one vector, formed one by one."""
    places = [(module, layer) for module in adapter.weights for layer in range(adapter.num_layers)]
    return torch.cat([adapter.delta_w(*place).flatten() for place in places])


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    return torch.cosine_similarity(x.double(), y.double(), dim=0).item()


def row(method: str, task: str, value: float, kind: str = "none", seed: int = 0) -> dict:
    cell = {"method": method, "split": "trained tasks", "kind": kind, "task": task, "seed": seed, "score": value}
    return cell | {"descriptions": 0, "examples": 4}


@pytest.fixture
def loras(make_adapter, tasks, tmp_path):
    """A folder with the LoRAs of the three tasks."""
    save_adapters(tmp_path / "loras", {t.name: make_adapter(i) for i, t in enumerate(tasks)}, {})
    return tmp_path / "loras"


# ---- how alike two LoRAs are ----


@pytest.mark.parametrize("other", [{}, {"rank": 3}, {"alpha": 2.0, "use_rslora": False}])
def test_the_cosine_of_delta_w_is_that_of_the_formed_matrices(make_adapter, other):
    first, second = make_adapter(1), make_adapter(2, **other)
    for module, (A, B) in second.weights.items():  # near enough to the first that the cosine is not about 0
        mine = first.weights[module]
        A += mine[0][:, : second.rank] * 2
        B += mine[1][..., : second.rank]
    expected = cosine(flat_delta(first), flat_delta(second))
    assert abs(expected) > 0.1
    assert delta_cosine(first, second) == pytest.approx(expected, abs=1e-5)
    assert delta_cosine(first, second.scaled(-0.5)) == pytest.approx(-expected, abs=1e-5)


def test_the_cosine_of_factors_is_that_of_all_entries_in_one_vector(make_adapter):
    first, second = make_adapter(1), make_adapter(2)
    for module, sides in second.weights.items():
        for x, y in zip(sides, first.weights[module], strict=True):
            x += y / 2
    a, b = (torch.cat([side.flatten() for sides in x.weights.values() for side in sides]) for x in (first, second))
    assert factor_cosine(first, second) == pytest.approx(cosine(a, b), abs=1e-6)


def test_one_delta_w_in_other_factors_is_alike_only_as_delta_w(make_adapter):
    """What Figures 4 and 10 differ by: the ranks in another order are the same adapter."""
    first = make_adapter(1)
    order = torch.arange(8).roll(1)
    second = replace(first, weights={m: (A[:, order], B[..., order]) for m, (A, B) in first.weights.items()})
    assert delta_cosine(first, second) == pytest.approx(1, abs=1e-5)
    assert abs(factor_cosine(first, second)) < 0.1


def test_a_lora_that_does_nothing_is_like_no_other(make_adapter):
    first = make_adapter(1)
    zero = replace(first, weights={m: (A, torch.zeros_like(B)) for m, (A, B) in first.weights.items()})
    assert delta_cosine(first, zero) is None


def test_loras_of_two_shapes_are_not_compared(make_adapter):
    first, narrow, deep = make_adapter(1), make_adapter(2, rank=4), make_adapter(3)
    deep.weights = {m: (torch.cat([A, A]), torch.cat([B, B])) for m, (A, B) in deep.weights.items()}
    with pytest.raises(UserError, match=r"'rank': 8.*'rank': 4"):
        factor_cosine(first, narrow)
    with pytest.raises(UserError, match="differ in shape"):
        delta_cosine(first, deep)


def test_pearson_is_numpys_and_undefined_where_it_says_nothing():
    x, y = np.random.default_rng(0).normal(size=(2, 20)).tolist()
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert pearson(x, [1.0] * 20) is None
    assert pearson([1.0, 2.0], [3.0, 1.0]) is None  # would be -1 whatever the values


# ---- Figure 3 ----


@pytest.fixture
def instances(loras, tasks, tmp_path):
    """Two hypernetworks as training.recon leaves them, of two and of three tasks, with results for each."""
    for n, own in ((2, {"first": 0.5, "second": 0.8}), (3, {"first": 0.5, "second": 0.8, "both": 1.0})):
        library = pack(loras, tmp_path / f"library-{n}.safetensors", {task.name for task in tasks[:n]})
        config = ReconConfig(task_input="one_hot", max_steps=2)
        train(build(library, config), library, config, tmp_path / f"recon-{n}")
        rows = [row("oracle LoRA", name, value) for name, value in own.items()]
        for seed, off in ((0, -0.1), (1, 0.1)):  # whose mean is the score
            rows += [row("HyperLoRA M", name, 0.9 * value / (n - 1) + off, seed=seed) for name, value in own.items()]
        write_results(tmp_path / f"results-{n}.json", [*rows, row("base", "first", 0.1)], {})
    return [[tmp_path / f"{what}-{n}{end}" for n in (2, 3)] for what, end in (("recon", ""), ("results", ".json"))]


def test_relative_performance_is_over_the_tasks_that_all_hypernetworks_share(instances):
    data = against_error(*instances)
    assert data["tasks"] == ["first", "second"] and data["left_out"] == [] and data["r"] is None
    two, three = data["instances"]
    assert (two["head"], two["trained_tasks"], three["trained_tasks"]) == ("M", 2, 3)
    assert two["error"] == json.loads((instances[0][0] / "recon.json").read_text())["error"] > 0
    assert two["by_task"] == pytest.approx({"first": 0.9, "second": 0.9})
    assert [i["relative_performance"] for i in (two, three)] == pytest.approx([0.9, 0.45])
    assert [i["ratio_of_means"] for i in (two, three)] == pytest.approx([0.9, 0.45])


def rewrite(path, change) -> None:
    """Change the score of each row of a results file."""
    rows, settings = read_results(path)
    write_results(path, [entry | {"score": change(entry)} for entry in rows], settings)


def test_a_task_whose_own_lora_scores_0_is_left_out_and_named(instances):
    def zero(entry):
        return 0.0 if (entry["method"], entry["task"]) == ("oracle LoRA", "first") else entry["score"]

    rewrite(instances[1][1], zero)
    data = against_error(*instances)
    assert data["tasks"] == ["second"] and data["left_out"] == ["first"]
    rewrite(instances[1][0], lambda entry: 0.0)
    with pytest.raises(UserError, match="own LoRA scores above 0"):
        against_error(*instances)


def test_what_figure_3_cannot_read_is_named(instances, tmp_path):
    folders, results = instances
    with pytest.raises(UserError, match=r'results-2\.json.*"rouge_l"'):
        against_error(folders, results, "rouge_l")
    write_results(tmp_path / "other.json", [row("base", "first", 0.5)], {})
    with pytest.raises(UserError, match=r"other\.json scores no task of .*HyperLoRA M"):
        against_error(folders[:1], [tmp_path / "other.json"])
    (folders[0] / "recon.json").write_text('{"error": "small"}')
    with pytest.raises(UserError, match=r"recon\.json must hold"):
        against_error(folders, results)


# ---- Figures 4 and 10 ----


def test_points_hold_the_cosines_and_the_relative_performance(loras, tasks, embedder):
    rows = [row("oracle LoRA", "both", 0.8), row("oracle LoRA", "first", 0.0)]
    rows += [row(lora_of("first"), "both", 0.6), row(lora_of("second"), "both", 0.2)]
    rows += [row(lora_of("second"), "first", 0.2)]
    points = compare_loras([tasks[2], tasks[0]], tasks, loras, embedder, rows)
    assert [point["target"] for point in points] == ["both", "both", "first", "first"]
    by_pair = {(p["target"], p["lora"]): p for p in points}
    assert set(by_pair) == {("both", "first"), ("both", "second"), ("first", "second"), ("first", "both")}
    point = by_pair["both", "second"]
    means = [embedder.embed(tasks[i].descriptions).mean(0) for i in (2, 1)]
    assert point["descriptions"] == pytest.approx(cosine(*means))
    both, second = (Adapter.from_pretrained(loras / name) for name in ("both", "second"))
    assert point["factors"] == factor_cosine(both, second)
    assert point["delta"] == pytest.approx(cosine(flat_delta(both), flat_delta(second)), abs=1e-5)
    assert point["performance"] == pytest.approx(0.25)
    assert by_pair["both", "first"]["performance"] == pytest.approx(0.75)
    assert by_pair["first", "second"]["performance"] is None  # its own LoRA scores 0


def test_r_is_of_each_target_and_only_of_the_points_that_have_the_measure():
    random = np.random.default_rng(0)
    points = [
        {"target": target, "lora": f"{i}", "descriptions": random.normal(), "factors": random.normal(), "delta": 1.0}
        for target in ("one", "two")
        for i in range(10)
    ]
    for i, point in enumerate(points):
        point["performance"] = 2 * point["descriptions"] if 3 < i < 10 else None
    data = against_descriptions(points, ["factors", "performance"])
    rs = [
        np.corrcoef(*[[p[k] for p in part] for k in ("descriptions", "factors")])[0, 1]
        for part in (points[:10], points[10:])
    ]
    assert data["r"]["factors"] == pytest.approx({"one": rs[0], "two": rs[1]})
    assert data["mean_r"] == pytest.approx({"factors": sum(rs) / 2, "performance": 1.0})
    assert data["r"]["performance"]["two"] is None and data["left_out"] == {"factors": [], "performance": ["two"]}
    assert "delta" not in data["points"][0]
    assert against_descriptions(points, ["delta"])["mean_r"] == {"delta": None}  # constant


def test_every_lora_is_scored_on_the_targets_once(adapted, loras, tasks, tmp_path, monkeypatch):
    """A stand-in for the base, whose scores tell LoRA, task and examples; killed after two LoRAs and gone on with."""
    path, loaded, load = tmp_path / "scores.json", [], Adapter.from_pretrained

    def value(adapter, task, examples) -> float:
        return adapter.norm() / 10_000 + len(task.name) / 100 + len(examples) / 1000

    def counted(folder):
        loaded.append(folder.name)
        if len(loaded) == 3:
            raise KeyboardInterrupt
        return load(folder)

    monkeypatch.setattr(
        analysis, "score", lambda _, __, trials, ___: [value(t.adapter, t.task, t.examples) for t in trials]
    )
    monkeypatch.setattr(analysis.Adapter, "from_pretrained", counted)
    monkeypatch.setattr(analysis, "base_digest", lambda model: "the base")
    monkeypatch.setattr(analysis, "fitting", lambda _, __, task, examples: examples)
    with pytest.raises(KeyboardInterrupt):
        cross_scores(adapted, None, tasks[1:], tasks, loras, path, examples=4)
    rows = cross_scores(adapted, None, tasks[1:], tasks, loras, path, examples=4)
    assert loaded == ["second", "both", "first", "first"]
    kept, settings = read_results(path)
    assert sorted(kept, key=str) == sorted(rows, key=str) and settings == {"examples": 4}
    expected = {
        ("oracle LoRA" if lora.name == target.name else lora_of(lora.name), target.name): value(
            load(loras / lora.name), target, target.test[:4]
        )
        for lora in tasks
        for target in tasks[1:]
    }
    assert len(rows) == 6 and {(r["method"], r["task"]): r["score"] for r in rows} == expected
    load(loras / "both").scaled(2.0).save_pretrained(loras / "both")  # trained again
    again = cross_scores(adapted, None, tasks[1:], tasks, loras, path, examples=4)
    assert loaded[4:] == ["both"] and len(again) == 6
    changed = {row["method"] for row in again if row not in rows}
    assert changed == {"LoRA of both", "oracle LoRA"}
    with pytest.raises(UserError, match=r"scores\.json was measured with other settings"):
        cross_scores(None, None, tasks, tasks, loras, path, examples=5)


# ---- Figure 5 ----


@pytest.fixture
def hyperlora(make_config, embedder, tasks) -> HyperLoRA:
    hyperlora = HyperLoRA(make_config(head="S", dropout=0.5)).train()
    hyperlora.embedder = embedder
    return hyperlora


def test_activations_are_of_unseen_descriptions_and_placed_the_same_each_time(hyperlora, embedder, tasks):
    other = Task("other", ["Do other.", "Other, please."], ["Now other."])
    tasks[0].eval_descriptions = []  # only seen ones are left
    data = activations(hyperlora, [*tasks, other], tasks, count=3)
    kinds = {p["description"]: (p["task"], p["kind"]) for p in data["points"]}
    assert kinds == {
        **{text: ("first", SEEN) for text in tasks[0].descriptions},
        "Now second.": ("second", UNSEEN),
        "Now both.": ("both", UNSEEN),
        **{text: ("other", UNSEEN) for text in ("Do other.", "Other, please.", "Now other.")},
    }
    assert hyperlora.training and data["perplexity"] == pytest.approx(2)
    places = np.array([[p["task_encoder"], p["last_block"]] for p in data["points"]])
    assert places.shape == (7, 2, 2) and np.isfinite(places).all() and (places.std(0) > 0).all()
    assert activations(hyperlora, [*tasks, other], tasks, count=3) == data

    hyperlora.eval()
    with torch.no_grad():
        inputs = embedder.embed(list(kinds))
        outputs = {"task_encoder": hyperlora.network.encode(inputs)}
        outputs["last_block"] = hyperlora.network.features(inputs).flatten(1)
    for name, output in outputs.items():
        expected = silhouette_score(output.numpy(), [p["task"] for p in data["points"]])
        assert data["silhouette"][name] == pytest.approx(expected, abs=1e-5)


def test_descriptions_of_one_kind_lie_together(make_config):
    """An embedder that knows the task: the two clouds part in both plots."""
    hyperlora = HyperLoRA(make_config())

    class Knowing:
        d_emb = 16

        def embed(self, texts):
            noise = torch.randn(len(texts), 16, generator=torch.Generator().manual_seed(0)) / 10
            return noise + torch.tensor([4.0 if text.startswith("add") else -4.0 for text in texts])[
                :, None
            ] * torch.arange(16)

    hyperlora.embedder = Knowing()
    tasks = [Task(name, [f"{name} {i}" for i in range(8)]) for name in ("add", "cut")]
    data = activations(hyperlora, tasks, count=8)
    for name in ("task_encoder", "last_block"):
        places = np.array([p[name] for p in data["points"]])
        centres = places[:8].mean(0), places[8:].mean(0)
        spread = np.linalg.norm(places[:8] - centres[0], axis=1).mean()
        assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread and data["silhouette"][name] > 0.5


def test_too_few_descriptions_or_numbered_tasks_have_no_figure_5(hyperlora, make_config, tasks):
    with pytest.raises(UserError, match="at least four descriptions, and these tasks have 1"):
        activations(hyperlora, tasks[:1], tasks)
    with pytest.raises(UserError, match="reads descriptions"):
        activations(HyperLoRA(make_config(task_input="one_hot", num_tasks=16)), tasks)


# ---- the command ----


def check_figures(folder, names) -> None:
    """A PNG and its data for each name and for no other; no PNG is blank."""
    assert sorted(path.name for path in folder.glob("figure-*")) == sorted(
        f"{n}.{s}" for n in names for s in ("json", "png")
    )
    for name in names:
        pixels = image.imread(folder / f"{name}.png")
        assert min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.02
        json.loads((folder / f"{name}.json").read_text())


def test_the_command_draws_all_figures(tmp_path, tiny_base, tiny_hyperlora, loras, tasks, instances, capsys):
    for task in tasks:
        task.eval_descriptions.append(f"Then {task.name}.")
        task.save(tmp_path / "tasks")
    folders, results = ([str(path) for path in paths] for paths in instances)
    out = ["--output", str(tmp_path / "out")]
    more = ["--tasks", str(tmp_path / "tasks"), "--adapters", str(loras), "--hyperlora", str(tiny_hyperlora)]
    main([*out, "--recon", *folders, "--results", *results])
    check_figures(tmp_path / "out", ["figure-3"])
    assert "Figures 4 and 10 need --tasks and --adapters." in capsys.readouterr().err
    main([*out, *more])
    assert "The lower half of Figure 4" in capsys.readouterr().err
    upper = json.loads((tmp_path / "out" / "figure-4.json").read_text())
    main([*out, *more, "--base", str(tiny_base), "--examples", "2", "--targets", "2"])
    printed = capsys.readouterr()
    # the random base answers nothing right
    assert "scores 0 or has no score" in printed.err and "Figure 3 needs" in printed.err
    check_figures(tmp_path / "out", ["figure-3", "figure-4", "figure-5", "figure-10"])
    figure = json.loads((tmp_path / "out" / "figure-4.json").read_text())
    assert len(upper["points"]) == 6 and len(figure["points"]) == 4 and "performance" in figure["mean_r"]


def test_the_command_says_what_is_missing(tmp_path, tasks):
    for task in tasks:
        task.save(tmp_path / "tasks")
    out = ["--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"Figure 3 needs .* Figure 5 needs .* Figures 4 and 10 need"):
        main([*out, "--tasks", str(tmp_path / "tasks")])
    with pytest.raises(UserError, match="holds no LoRA of these tasks"):
        main([*out, "--tasks", str(tmp_path / "tasks"), "--adapters", str(tmp_path)])
    with pytest.raises(UserError, match="2 folders and --results 1 files"):
        main([*out, "--recon", "a", "b", "--results", "c"])
    with pytest.raises(UserError, match="targets is 0, but must be at least 1"):
        main([*out, "--targets", "0"])
    assert not (tmp_path / "out").exists()
