import json
from operator import itemgetter

import pytest

from hyperlora.errors import UserError
from training.parts.results import paper_table, read_results, summary, summary_table, write_results


def row(method: str, task: str, score: float, kind: str = "none", split: str = "test", seed: int = 0) -> dict:
    return {"method": method, "task": task, "score": score, "kind": kind, "split": split, "seed": seed}


def test_a_table_like_the_papers():
    rows = [
        row("base", "a", 0.25),
        row("base", "b", 0.5),
        row("base, few-shot", "a", 0.5),  # b has no examples to show
        row("multi-task LoRA", "a", 0.25),
        row("multi-task LoRA", "b", 0.75, seed=0),
        row("multi-task LoRA", "b", 0.25, seed=1),
        row("HyperLoRA M", "a", 1.0, "unseen"),
        row("HyperLoRA M", "a", 0.0, "random string"),  # for Table 5, not for this one
        row("HyperLoRA M", "b", 0.25, "unseen"),
        row("oracle LoRA", "a", 0.75),
        row("oracle LoRA", "b", 0.75),
    ]
    assert paper_table(rows, labels={"a": "A (acc)"}).splitlines() == [
        "|  | A (acc) | b | Avg. (1 tasks) | Avg. |",
        "| --- | --- | --- | --- | --- |",
        "| *No test-time adaptation* |  |  |  |  |",
        "| base | 25.0 | 50.0 | 25.0 | 37.5 |",
        "| base, few-shot | **50.0** | N/A | **50.0** | N/A |",
        "| multi-task LoRA | 25.0 | 50.0 | 25.0 | 37.5 |",
        "| *Zero-shot adaptation* |  |  |  |  |",
        "| HyperLoRA M | **100.0**† | 25.0 | **100.0**† | **62.5** |",
        "| *Oracle* |  |  |  |  |",
        "| oracle LoRA | **75.0** | **75.0** | **75.0** | **75.0** |",
    ]


def test_seen_descriptions_stand_in_where_there_are_no_others():
    rows = [row("HyperLoRA M", "a", 0.5, "seen"), row("HyperLoRA M", "a", 0.25, "unseen")]
    rows += [row("HyperLoRA M", "b", 1.0, "seen"), row("HyperLoRA M", "b", 0.0, "another task's")]
    assert "| HyperLoRA M | 25.0 | 100.0 | 62.5 |" in paper_table(rows)


def test_many_tasks_make_one_column_a_split():
    rows = [row("base", f"{i}", i / 20, split="new" if i > 9 else "trained") for i in range(20)]
    rows += [row("oracle LoRA", "3", 1.0, split="trained")]
    assert paper_table(rows).splitlines()[-4:] == [
        "| *No test-time adaptation* |  |  |",
        "| base | 22.5 | 72.5 |",
        "| *Oracle* |  |  |",
        "| oracle LoRA | 100.0 (1) | N/A |",
    ]


def test_tasks_of_one_name_in_two_splits_stay_apart():
    table = paper_table([row("base", "sum", 0.5), row("base", "sum", 1.0, split="induction")])
    assert table.startswith("|  | sum | sum, induction | Avg. |") and "| base | 50.0 | 100.0 | 75.0 |" in table


def test_the_summary_is_the_mean_over_tasks_and_its_spread_over_seeds():
    row = {"method": "base", "split": "trained", "kind": "none"}
    rows = [
        row | {"task": t, "seed": s, "score": v}
        for t, s, v in [("a", 0, 0.2), ("b", 0, 0.4), ("a", 1, 0.6), ("b", 1, 0.8)]
    ]
    [entry] = summary(rows)
    assert entry["mean"] == pytest.approx(0.5) and entry["tasks"] == 2
    assert entry["spread"] == pytest.approx((0.7 - 0.3) / 2**0.5)


# ---- files ----

ROWS = [
    row("base", "a", 0.25) | {"examples": 4},
    row("base", "b", 1 / 3) | {"examples": 3},
    row("HyperLoRA M", "b", 0.5, "unseen") | {"examples": 3, "scores": [0.0, 1.0]},
    row("base", "a", 1.0, seed=1) | {"examples": 4},
    row("HyperLoRA M", "a", 1.0, "unseen") | {"examples": 4, "scores": [1.0, 1.0]},
]


def test_a_file_gives_the_rows_back(tmp_path):
    write_results(tmp_path / "results.json", ROWS, {"examples": 4})
    rows, settings = read_results(tmp_path / "results.json")
    key = itemgetter("method", "kind", "task", "seed")
    assert sorted(rows, key=key) == sorted(ROWS, key=key) and settings == {"examples": 4}
    assert summary_table(rows) == summary_table(ROWS)
    kept = json.loads((tmp_path / "results.json").read_text())["summary"]  # for whoever reads the file alone
    assert kept == summary(ROWS)


def test_no_rows_are_results_too(tmp_path):
    write_results(tmp_path / "results.json", [], {})
    assert read_results(tmp_path / "results.json") == ([], {})


def test_a_file_is_a_fraction_of_its_rows(tmp_path):
    rows = [
        row(f"method {m}", f"the task {i}", 0.5, "unseen", seed=seed)
        for m in range(4)
        for i in range(100)
        for seed in range(3)
    ]
    write_results(tmp_path / "results.json", rows, {})
    assert (tmp_path / "results.json").stat().st_size < len(json.dumps(rows)) / 8


GOOD = {"method": "base", "split": "test", "kind": "none", "seed": 0, "task": [0, 1], "score": [0.5, 1.0]}


def file(**changes) -> dict:
    return {"settings": {}, "tasks": ["a", "b"], "groups": [GOOD]} | changes


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[" * 100_000, [GOOD], {"rows": [GOOD]}, file(settings=[]), file(groups=GOOD), file(tasks=["a"]),
        file(tasks=[1, 2]), file(groups=["base"]),
        *(file(groups=[GOOD, {k: v for k, v in GOOD.items() if k != key}]) for key in GOOD),
        *(file(groups=[GOOD, GOOD | {"score": [0, value]}]) for value in (-1, 1.5, 10**400, float("nan"), True, "1")),
        file(groups=[GOOD | {"score": [0.5]}]), file(groups=[GOOD | {"task": "ab"}]),
        file(groups=[GOOD | {"kind": ["none"]}]), file(groups=[GOOD | {"seed": [0]}]),
    ],
)  # fmt: skip
def test_damaged_results_end_in_a_sentence(content, tmp_path):
    (tmp_path / "bad.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=r"bad\.json (is damaged|must be results)") as error:
        read_results(tmp_path / "bad.json")
    assert "\n" not in str(error.value)
