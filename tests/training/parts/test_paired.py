from itertools import product

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from training.parts.paired import difference, holm, p_value


def signs(differences: list[float]) -> float:
    """p by counting: of all signs, those under which the mean is as far from 0."""
    sums = [
        abs(sum(s * d for s, d in zip(flip, differences, strict=True)))
        for flip in product((1, -1), repeat=len(differences))
    ]
    return sum(value >= abs(sum(differences)) - 1e-9 for value in sums) / len(sums)


@pytest.mark.parametrize(
    "differences",
    [
        [0.1] * 8,
        [0.3, -0.2, 0.1, 0.0, 0.0, 0.4],
        [-0.5, -0.25, -0.25, 0.0, -1.0, 0.125, -0.5],
        [0.0, 0.0, 0.0],
        [0.0, 0.25, 0.0],
        [0.0] * 15 + [1.0, 0.5, 0.25],
        [0.07, -0.05, 0.02, 0.11, -0.03, 0.01, 0.09, 0.04, -0.02, 0.06],
    ],
)
def test_p_is_the_share_of_signs_that_give_as_much(differences):
    assert p_value(differences) == pytest.approx(signs([d for d in differences if d]) if any(differences) else 1.0)


def test_of_many_tasks_p_is_drawn_and_always_the_same():
    differences = [0.1 * (i % 7) - 0.15 for i in range(30)]
    assert p_value(differences) == p_value(differences)
    assert p_value(differences) == pytest.approx(ttest_1samp(differences, 0).pvalue, abs=0.01)


def test_holms_correction_is_that_of_the_smallest_p_first():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []


def test_a_difference_is_over_the_tasks_that_both_have():
    first = {str(i): 0.5 + (i % 7) / 20 for i in range(60)}
    second = {str(i): 0.5 + (i % 5) / 40 for i in range(10, 70)}
    found = difference(first, second)
    values = [first[str(i)] - second[str(i)] for i in range(10, 60)]
    assert found.tasks == 50 and found.mean == pytest.approx(np.mean(values))
    half = 1.96 * np.std(values) / np.sqrt(50)  # a mean over fifty is nearly normal
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=half / 5)
    assert found.p == p_value(values)
    assert str(difference({"a": 1.0}, {"a": 0.25})) == "1.00 against 0.25 (+0.75, +0.75 to +0.75)"
    assert difference({"a": 1.0}, {"b": 1.0}) is None
