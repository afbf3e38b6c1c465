import pytest

from training.parts.cells import Budget, cells
from training.parts.claims import (
    Claim,
    alike,
    better,
    claims,
    correlations,
    ending,
    error_r,
    is_flat,
    no_worse,
    ruled,
    scores,
    verdict,
    within,
)
from training.parts.report import prompted_base


def test_the_ending_is_the_line_of_each_of_the_last_two_fifths():
    falling = [(step, 2.0 - step / 1000) for step in range(20, 1001, 20)]
    found = ending(falling, 1000)
    assert found["loss"] == pytest.approx(2 - 0.91) and found["slope"] == pytest.approx(-1.0)
    assert found["changes"] == pytest.approx([-0.2 / 0.89, -0.2 / 0.89]) and not is_flat(found)  # of 1.98 - 1.09
    assert is_flat(ending([(step, 1.0 if step > 600 else 9.0) for step in range(20, 1001, 20)], 1000))
    assert not is_flat(ending([(1000, 1.0)], 1000))


def test_a_loss_that_nears_zero_is_flat_and_one_that_never_fell_is_not():
    halving = [(step, 0.5 ** (step / 100)) for step in range(20, 1001, 20)]
    assert is_flat(ending(halving, 1000))
    assert not is_flat(ending([(step, 1.0) for step in range(20, 1001, 20)], 1000))


def test_a_loss_that_only_the_learning_rate_flattened_is_not_flat():
    stopped = [(step, max(2.0 - step / 500, 0.4)) for step in range(20, 1001, 20)]
    found = ending(stopped, 1000)
    assert found["changes"][1] == pytest.approx(0) and not is_flat(found)


def test_a_claim_is_undecided_where_a_cell_is_not_flat():
    trained = {"a": {"changes": [0.01, 0.02]}, "b": {"changes": [-0.2, 0.0]}}
    assert verdict(Claim("", "", ("a",), True, ""), trained) == "held"
    assert verdict(Claim("", "", ("a",), False, ""), trained) == "did not hold"
    assert verdict(Claim("", "", ("a",), None, ""), trained) == "undecided"
    assert verdict(Claim("", "", ("a", "b"), True, ""), trained) == "undecided"


def test_scores_are_compared_task_by_task():
    low = {f"task {i}": i / 10 for i in range(9)}
    high = {task: value + 0.1 + 0.01 * (value > 0.4) for task, value in low.items()}
    same = {task: value + (0.01 if i % 2 else -0.01) for i, (task, value) in enumerate(low.items())}
    floor = {task: value - 0.5 for task, value in low.items()}
    assert better(high, low).held is True and better(low, high).held is False
    assert better(high, low).p == pytest.approx(2 / 2**9)  # all nine tasks say so
    assert alike(same, low, floor).held is True and alike(high, low, floor).held is False
    assert no_worse(high, low).held is True and no_worse(low, high).held is False and no_worse(same, low).held is True


def test_a_difference_within_its_error_is_undecided():
    low = {f"task {i}": i / 10 for i in range(9)}
    floor = {task: value - 0.5 for task, value in low.items()}
    for difference in (0.02, -0.02, 0.08):
        noisy = {t: v + difference + (0.3 if i % 2 else -0.24) for i, (t, v) in enumerate(low.items())}
        for ruling in (better(noisy, low), better(low, noisy), alike(noisy, low, floor), no_worse(noisy, low)):
            assert ruling.held is None and ruling.p >= 0.05
    clear = {task: value + 0.5 for task, value in list(low.items())[:4]}
    assert better(clear, low).held is None  # four tasks decide nothing: p is 2 / 16 at best
    assert better(clear, {"other": 1.0}) == (None, "not measured", None)


def test_what_is_as_bad_as_the_floor_is_not_said_to_be_alike():
    low = {f"task {i}": i / 10 for i in range(9)}
    ruling = alike(low, low, floor={task: value + 0.2 for task, value in low.items()})
    assert ruling.held is None and ruling.evidence.endswith("neither above what needs no description")


def test_a_mean_correlation_is_tested_over_its_targets():
    clear = {"r": {"delta": {f"task {i}": 0.2 + i / 50 for i in range(8)} | {"other": None}}}
    assert ruled(correlations(clear, "delta")).held is True
    assert correlations(clear, "delta")[1] == "0.27 ± 0.03 (8 targets)"
    noisy = {"r": {"delta": {f"task {i}": (-1) ** i * 0.5 for i in range(8)}}}
    assert ruled(correlations(noisy, "delta")).held is None
    near = {"r": {"delta": {f"task {i}": (-1) ** i * 0.05 for i in range(8)}}}
    assert (
        within(correlations(near, "delta"), 0.2).held is True and within(correlations(noisy, "delta"), 0.2).held is None
    )
    far = {"r": {"delta": {f"task {i}": 0.5 + i / 50 for i in range(8)}}}
    assert within(correlations(far, "delta"), 0.2).held is False
    assert correlations({"r": {"delta": {"a": 0.9}}}, "delta") is None


def test_performances_that_hardly_differ_say_nothing_of_errors():
    near, far = ({"r": -0.9, "instances": [{"relative_performance": p} for p in (1.0, low)]} for low in (0.97, 0.8))
    assert error_r(near) is None and error_r(far) == -0.9


def test_a_method_is_not_taken_for_another_that_begins_alike():
    rows = [
        {"method": method, "split": "held-out tasks", "kind": "none", "task": "t", "score": value}
        for method, value in (("base", 0.2), ("base, few-shot", 0.8), ("HyperLoRA M", 0.4))
    ]
    assert scores({"x": rows}, "x", kind="none", method="base") == {"t": 0.2}
    assert scores({"x": rows}, "x", kind="none") == {"t": 0.4}


FIGURES = {f"figure-{n}": {"missing": "no LoRA scores"} for n in (3, 4, 5, 10)}


def rows(value: float, method: str = "HyperLoRA M", kind: str = "unseen") -> list[dict]:
    """Eight held-out tasks of one score."""
    common = {"split": "held-out tasks", "kind": kind, "method": method, "score": value}
    return [common | {"task": task} for task in "abcdefgh"]


def results(budget: Budget, sft: float, recon: float, nearest: float = 0.1) -> dict[str, list[dict]]:
    """All cells of a scheme at one score, and a Table 2 with every other method at 0.1."""
    found = {cell.name: rows(sft if cell.scheme == "sft" else recon) for cell in cells(budget, 3)}
    plain = ("base", "multi-task LoRA", "average LoRA", "Arrow routing")
    found["table-2"] = [row for method in plain for row in rows(0.1, method, "none")]
    found["table-2"] += rows(nearest, "nearest task's LoRA") + rows(0.1, "base, prompted")
    return found


@pytest.mark.parametrize(("sft", "recon", "held"), [(0.8, 0.4, True), (0.4, 0.8, False)])
def test_table_6_says_which_scheme_is_ahead(sft, recon, held):
    """Cells whose scores are all one value, and figures that could not be drawn."""
    budget = Budget(seeds=1, ladder=(2,), fewer_descriptions=(1,))
    said = {claim.source: claim for claim in claims(budget.fewer_descriptions, results(budget, sft, recon), FIGURES)}
    assert said["Table 6"].held is held and said["Table 6"].cells == ("sft-M-0", "recon-M-0")
    assert said["Fig. 3"].held is None and said["Fig. 3"].evidence == "no LoRA scores"
    assert said["Table 4"].held is True and said["Fig. 6"].held is True


def test_every_head_is_compared_with_every_method_that_needs_no_training_on_the_task():
    found = results(Budget(), 0.4, 0.4, nearest=0.35) | {"sft-S": rows(0.3)}
    said = {claim.text: claim for claim in claims((), found, FIGURES)}
    for head in "MLS":
        for method in ("base", "multi-task LoRA", "average LoRA", "Arrow routing"):
            assert said[f"SFT with head {head} is better than: {method}"].held is True
        assert said[f"SFT with head {head} is better than: nearest task's LoRA"].held is (head != "S")


def test_what_is_held_against_head_m_is_held_against_all_its_seeds():
    """The first seed is ahead of every ablation, the mean over the seeds is behind."""
    budget = Budget(ladder=(2,), fewer_descriptions=(1,))
    found = results(budget, 0.4, 0.4) | {"sft-M-0": rows(0.6), "sft-M-1": rows(0.2), "sft-M-2": rows(0.1)}
    seeds = ("sft-M-0", "sft-M-1", "sft-M-2")
    said = claims(budget.fewer_descriptions, found, FIGURES)
    ablations = [claim for claim in said if claim.cells[:3] == seeds and len(claim.cells) == 4]
    assert {claim.cells[3] for claim in ablations} == {
        "sft-L", "sft-S", "sft-M-2-tasks", "sft-M-last-token", "sft-M-no-offset", "sft-M-average-offset",
        "sft-M-delta-offset", "sft-M-1-descriptions",
    }  # fmt: skip
    assert all(claim.held is False and claim.evidence.startswith("30.0 against 40.0") for claim in ablations)
    assert {claim.source for claim in said if claim.cells == ("sft-M-0",)} == {"Table 5", "Fig. 5"}


def test_a_prompted_base_that_is_ahead_is_said():
    found = results(Budget(seeds=2), 0.2, 0.2) | {"sft-M-1": rows(0.4)}
    assert prompted_base(found) == ""  # 10 against 30
    found["table-2"] = rows(0.5, "base, prompted")
    assert prompted_base(found) == (
        "The base with the description in its prompt is ahead of HyperLoRA M on the held-out tasks, "
        "50.0 against 30.0, difference +20.0 ± 0.0 (8 tasks), p = 0.008."
    )
