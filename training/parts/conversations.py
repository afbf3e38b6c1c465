"""Several turns of a chat in which every answer is the model's own: whether the fourth is as good as the first."""

from collections.abc import Sequence
from dataclasses import replace

from hyperlora.adapted import AdaptedModel
from training.evaluate import Settings
from training.parts.answers import Answers
from training.parts.kinds import NO_DESCRIPTION
from training.parts.scoring import Trial, chat_scores, respond

TURNS = 4
FIRST, FOURTH, AFTER_ANOTHER = "first turn", "fourth turn", "fourth turn after another adapter's"


def converse(
    adapted: AdaptedModel,
    tokenizer,
    method: str,
    trials: Sequence[Trial],
    settings: Settings,
    saved: Answers | None = None,
) -> list[dict]:
    """Rows as `training.evaluate` has them, of one seed, in the splits `FIRST`, `FOURTH` and `AFTER_ANOTHER`.

    trials: of one task each, with at least four examples. A task's first four make four conversations, each in turn the
    last, so that the fourth turns answer what the first ones do. In front of the fourth turn after another adapter's
    are three turns of the next trial's task, with its adapter and description; so that needs two trials.
    """
    trials = [replace(trial, examples=trial.examples[:TURNS]) for trial in trials if len(trial.examples) >= TURNS]
    histories: list[list[list[tuple[str, str]]]] = [[[] for _ in range(TURNS)] for _ in trials]  # trial, conversation
    rows = []

    def ask(turn: int, before: Sequence[list[list[tuple[str, str]]]]) -> list[list[str]]:
        """Each trial's answers to the messages of one turn, by conversation: conversation c begins with example c."""
        asked = [
            replace(trial, examples=[_asked(trial, c + turn) | {"turns": own[c]} for c in range(TURNS)])
            for trial, own in zip(trials, before, strict=True)
        ]
        return respond(adapted, tokenizer, asked, settings.batch_size, settings.limit, saved)

    def score(split: str, turn: int, answers: Sequence[list[str]]) -> None:
        for trial, texts in zip(trials, answers, strict=True):
            order = replace(trial, examples=[_asked(trial, c + turn) for c in range(TURNS)])
            row = {"method": method, "split": split, "kind": trial.kind, "task": trial.task.name, "seed": 0}
            row |= chat_scores(order, texts, settings.f1_above)
            rows.append(row | {"descriptions": int(trial.kind != NO_DESCRIPTION), "examples": TURNS})

    for turn in range(TURNS):
        if turn == TURNS - 1 and len(trials) > 1:
            score(AFTER_ANOTHER, turn, ask(turn, histories[1:] + histories[:1]))
        answers = ask(turn, histories)
        if turn in (0, TURNS - 1):
            score(FIRST if turn == 0 else FOURTH, turn, answers)
        for trial, own, texts in zip(trials, histories, answers, strict=True):
            for c, text in enumerate(texts):
                own[c] = [*own[c], (_asked(trial, c + turn)["input"], text)]
    return rows


def _asked(trial: Trial, number: int) -> dict:
    return trial.examples[number % TURNS]
