"""Two methods over the same tasks: the permutation test of their difference, its interval, and many tests at once."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, permutation_test

ALPHA = 0.05  # a p below it decides
RESAMPLES = 99_999
TINY = 1e-12

Scores = dict[str, float]  # task -> score, 0 to 1


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p of a paired permutation test: how often the differences' mean is as far from 0 under random signs.

    All signs are tried where there are few enough of them, and otherwise `RESAMPLES`, always the same.
    """
    found = [difference for difference in differences if abs(difference) > TINY]  # the others change no sum
    if len(found) < 2:  # a sum of one has the same size under either sign
        return 1.0
    test = permutation_test((found,), np.sum, permutation_type="samples", n_resamples=RESAMPLES, rng=0)
    return float(test.pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """The p of several tests, corrected for their number by Holm's method."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected


@dataclass(frozen=True)
class Difference:
    """What a method has over another, over `tasks` tasks: the means of both, and the 95 % interval of the difference's.

    p: two-sided, of a paired permutation test over the tasks; 1 where there is one task alone.
    """

    first: float
    second: float
    low: float
    high: float
    p: float
    tasks: int

    @property
    def mean(self) -> float:
        return self.first - self.second

    def __str__(self) -> str:
        return f"{self.first:.2f} against {self.second:.2f} ({self.mean:+.2f}, {self.low:+.2f} to {self.high:+.2f})"


def difference(first: Scores, second: Scores) -> Difference | None:
    """Over the tasks that both have; None where there are none. The interval is a percentile bootstrap's over tasks."""
    tasks = [task for task in first if task in second]
    if not tasks:
        return None
    found = [first[task] - second[task] for task in tasks]
    means = [statistics.fmean(side[task] for task in tasks) for side in (first, second)]
    low = high = means[0] - means[1]
    if len(tasks) > 1:
        interval = bootstrap((found,), np.mean, method="percentile", rng=0).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Difference(*means, low, high, p_value(found), len(tasks))
