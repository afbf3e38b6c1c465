"""What the cards of all models say in the same words."""

from collections.abc import Mapping

FAILED = 0.5  # a task of a lower score counts as one that is not done


def failed(scores: Mapping[str, float]) -> str:
    """How many of the trained tasks, by their scores with unseen descriptions, are not done."""
    below = sum(score < FAILED for score in scores.values())
    return f"HyperLoRA, unseen descriptions of trained tasks: {below} of {len(scores)} tasks score under {FAILED}."


def notices(threshold: float, flagged: Mapping[str, float], words: Mapping[str, str]) -> str:
    """What the notice on far descriptions flags; `words` say what the kinds of `flagged` are."""
    *shares, last = [f"{flagged[kind]:.0%} of {text}" for kind, text in words.items() if kind in flagged]
    return (
        f"Far descriptions: below a cosine of {threshold} to every training description the adapter comes with a "
        f"notice (App. A.4). That flags {', '.join(shares)}, and {last}."
    )
