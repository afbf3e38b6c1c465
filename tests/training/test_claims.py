import pytest

from training.claims import Claim, alike, better, claims, ending, is_flat, no_worse, positive, scores, verdict
from training.reproduce import Budget, cells


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
    noisy = {task: value + (0.3 if i % 2 else -0.28) for i, (task, value) in enumerate(low.items())}
    assert better(high, low)[0] is True and better(low, high)[0] is False
    assert better(noisy, low)[0] is False  # above, yet within twice the standard error
    floor = dict.fromkeys(low, 0.0)
    assert alike(noisy, low, floor)[0] is True and alike(high, low, floor)[0] is False
    assert alike(noisy, low, floor=high)[0] is None  # as bad as each other: nothing is shown
    assert no_worse(high, low)[0] is True and no_worse(low, high)[0] is False
    assert better(high, {"other": 1.0}) == (None, "not measured")


def test_a_mean_correlation_is_above_0_where_twice_its_standard_error_is_not_more():
    data = {"r": {"clear": {"a": 0.2, "b": 0.3, "c": None, "d": 0.25}, "noisy": {"a": 0.5, "b": -0.3, "c": 0.1}}}
    assert positive(data, "clear") == (True, "0.25 ± 0.06 (3 targets)")
    assert positive(data, "noisy")[0] is False
    assert positive({"r": {"clear": {"a": 0.9}}}, "clear") == (None, "not defined")
    assert positive({"missing": "no LoRA scores"}, "clear") == (None, "no LoRA scores")


def test_a_method_is_not_taken_for_another_that_begins_alike():
    rows = [
        {"method": method, "split": "held-out tasks", "kind": "none", "task": "t", "score": value}
        for method, value in (("base", 0.2), ("base, few-shot", 0.8), ("HyperLoRA M", 0.4))
    ]
    assert scores({"x": rows}, "x", kind="none", method="base") == {"t": 0.2}
    assert scores({"x": rows}, "x", kind="none") == {"t": 0.4}


@pytest.mark.parametrize(("sft", "recon", "held"), [(0.8, 0.4, True), (0.4, 0.8, False)])
def test_table_6_says_which_scheme_is_ahead(sft, recon, held):
    """Cells whose scores are all one value, and figures that could not be drawn."""
    budget, found = Budget(seeds=1, ladder=(2,), fewer_descriptions=(1,)), {}
    for cell in cells(budget, 3):
        value = sft if cell.scheme == "sft" else recon
        common = {"split": "held-out tasks", "kind": "unseen", "method": "HyperLoRA M"}
        found[cell.name] = [common | {"task": task, "score": value} for task in "abcd"]
    base = {"split": "held-out tasks", "kind": "none", "method": "base"}
    found["table-2"] = [base | {"task": task, "score": 0.1} for task in "abcd"]
    figures = {f"figure-{n}": {"missing": "no LoRA scores"} for n in (3, 4, 5, 10)}
    said = {claim.source: claim for claim in claims(1, budget.fewer_descriptions, found, figures)}
    assert said["Table 6"].held is held and said["Table 6"].cells == ("sft-M-0", "recon-M-0")
    assert said["Fig. 3"].held is None and said["Fig. 3"].evidence == "no LoRA scores"
    assert said["Table 4"].held is True and said["Fig. 6"].held is True
