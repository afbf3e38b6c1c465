"""The cells of the reproduction: the hypernetworks that are trained, and how much of everything there is."""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from hyperlora.embedder import LAST_TOKEN
from training.parts.claims import HELD_OUT, TRAINED


@dataclass(frozen=True)
class Budget:
    """How much of everything."""

    tasks: int = 64  # trained on, at most: the more, the more steps until the loss is flat
    held_out: int = 20
    ladder: tuple[int, ...] = (16, 32)  # numbers of tasks below all of them: Table 3, Fig. 1, Fig. 3
    distilled: int = 9  # tasks of Table 1
    descriptions: int = 64  # a task, for training
    fewer_descriptions: tuple[int, ...] = (1, 4, 8)  # Fig. 12
    seeds: int = 3  # of SFT with head M on all tasks, and of reconstruction in Table 6
    sft_steps: int = 2400
    recon_steps: int = 2000
    ladder_steps: int = 1000  # of reconstruction in Fig. 3: so few that the errors differ
    probe_steps: int = 50  # that the speed of reconstruction is taken from, for Table 6's equal wall-clock
    multi_task_steps: int = 150
    lora_steps: int = 150
    batch_size: int = 64
    examples: int = 24  # test examples a task
    draws: int = 3  # descriptions a task and kind
    checked: int = 24  # trained tasks that are measured
    targets: int = 10  # of Fig. 4, 5, 10
    compared: int = 64  # trained tasks' LoRAs in Fig. 4 and 10
    decides: bool = True  # whether its claims can be decided


QUICK = Budget(
    tasks=64, held_out=12, ladder=(8, 24), sft_steps=50, recon_steps=60, ladder_steps=30, probe_steps=10,
    multi_task_steps=50, lora_steps=30, examples=6, draws=2, checked=12, targets=4, compared=12, descriptions=16,
    decides=False,
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One hypernetwork: what differs from the stage's settings, on how many tasks, and what it is measured on."""

    name: str
    scheme: Literal["sft", "recon"]
    settings: dict = field(default_factory=dict)
    tasks: int = 0  # 0: all
    on: tuple[str, ...] = (HELD_OUT,)
    offset: str = "multi_task"
    steps: int = 0  # 0: those of its scheme
    equal_to: str = ""  # the cell whose wall-clock it gets instead of a number of steps


def cells(budget: Budget, tasks: int) -> list[Cell]:
    """All cells, the longest first, and each behind the one whose time it gets; `tasks`: how many there are."""
    rungs = [rung for rung in budget.ladder if rung < tasks]
    few = min(budget.distilled, tasks)
    heads = [(head, kind) for head in "LMS" for kind in ("text", "one_hot")]
    ladder = partial(Cell, scheme="recon", settings={"task_input": "one_hot"}, on=(TRAINED,), steps=budget.ladder_steps)
    return [
        Cell("sft-M-0", "sft", on=(HELD_OUT, TRAINED)),
        *(Cell(f"sft-M-{seed}", "sft", {"seed": seed}) for seed in range(1, budget.seeds)),
        *(Cell(f"sft-{head}", "sft", {"head": head}) for head in "LS"),
        *(Cell(f"sft-M-{rung}-tasks", "sft", tasks=rung, offset=f"multi_task_{rung}") for rung in rungs),
        Cell("sft-M-last-token", "sft", {"embedder": LAST_TOKEN}),
        Cell("sft-M-average-offset", "sft", offset="average"),
        Cell("sft-M-no-offset", "sft", {"offset": "none"}),
        Cell("sft-M-delta-offset", "sft", {"offset": "delta"}),
        *(Cell(f"sft-M-{n}-descriptions", "sft", {"max_descriptions": n}) for n in budget.fewer_descriptions),
        *(Cell(f"recon-M-{s}", "recon", {"seed": s}, equal_to=f"sft-M-{s}") for s in range(budget.seeds)),
        Cell("recon-M-delta", "recon", {"loss": "delta"}, equal_to="sft-M-0"),
        *(Cell(f"recon-{h}-{kind}", "recon", {"head": h, "task_input": kind}, few, (TRAINED,)) for h, kind in heads),
        *(ladder(f"recon-M-{n}-tasks", tasks=n) for n in [*rungs, tasks]),
    ]
