"""Which inputs are for training, for the tests, and for the tasks' own LoRAs."""

import zlib
from random import Random

from training.mini.suite import TextTask


def split_of(text: str) -> str:
    """Which split an input belongs to, in whatever task: `test` 1 in 8, `oracle` 1 in 8, otherwise `train`.

    Capitals and end marks make no difference: "Window." is in the tests if "window" is.
    """
    return {0: "test", 1: "oracle"}.get(zlib.crc32(text.lower().rstrip(".!?").encode()) % 8, "train")


def examples(task: TextTask, split: str, count: int, seed: int | str) -> list[dict[str, str]]:
    """Up to `count` examples of one split with different inputs; fewer where the task has no more inputs."""
    rng, found = Random(f"{task.name} {split} {seed}"), {}
    for _ in range(60 * count):
        text, answer = task.make(rng)
        if split_of(text) == split:
            found[text] = answer
            if len(found) == count:
                break
    return [{"input": text, "output": answer} for text, answer in found.items()]
