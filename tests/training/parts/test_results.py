from training.parts.results import paper_table


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
        "| | A (acc) | b | Avg. (1 tasks) | Avg. |",
        "| --- | --- | --- | --- | --- |",
        "| *No test-time adaptation* | | | | |",
        "| base | 25.0 | 50.0 | 25.0 | 37.5 |",
        "| base, few-shot | **50.0** | N/A | **50.0** | N/A |",
        "| multi-task LoRA | 25.0 | 50.0 | 25.0 | 37.5 |",
        "| *Zero-shot adaptation* | | | | |",
        "| HyperLoRA M | **100.0**† | 25.0 | **100.0**† | **62.5** |",
        "| *Oracle* | | | | |",
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
        "| *No test-time adaptation* | | |",
        "| base | 22.5 | 72.5 |",
        "| *Oracle* | | |",
        "| oracle LoRA | 100.0 (1) | N/A |",
    ]


def test_tasks_of_one_name_in_two_splits_stay_apart():
    table = paper_table([row("base", "sum", 0.5), row("base", "sum", 1.0, split="induction")])
    assert table.startswith("| | sum | sum, induction | Avg. |") and "| base | 50.0 | 100.0 | 75.0 |" in table
