"""Chats of four turns with the model's own answers."""

from training.evaluate import Settings
from training.parts.conversations import AFTER_ANOTHER, FIRST, FOURTH, converse
from training.parts.scoring import Trial
from training.tasks import Task


def echo_and_count(tokenizer, seen: list[str]):
    """In place of `decode`: the last message's first letter, as long as fewer than three answers are in the chat.

    The line end behind a description is <unk> to the tiny tokenizer.
    """

    def decode(model, tok, prompts, limits, using):
        texts = [tokenizer.decode(ids) for ids in prompts]
        seen.extend(texts)
        last = [text.rpartition("[INST] ")[2].rpartition("<unk>")[2][0] for text in texts]
        answers = [letter if text.count("</s>") < 3 else "?" for letter, text in zip(last, texts, strict=True)]
        return [tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]

    return decode


def task(name: str, words: str) -> Task:
    return Task(name, [], [f"Do {name}."], test=[{"input": word, "output": word[0]} for word in words.split()])


def test_each_message_is_once_the_first_and_once_the_fourth(adapted, tokenizer, make_adapter, monkeypatch):
    seen = []
    monkeypatch.setattr("training.parts.scoring.decode", echo_and_count(tokenizer, seen))
    tasks = [task("one", "ab bc cd de"), task("two", "kl lm mn no pq")]
    trials = [
        Trial(t, t.test, "unseen", t.eval_descriptions[0], make_adapter(i), style="description_input")
        for i, t in enumerate(tasks)
    ]
    rows = converse(adapted, tokenizer, "M", trials, Settings(chat=True))
    scores = {(row["split"], row["task"]): row["score"] for row in rows}
    assert scores == {(FIRST, name): 1 for name in ("one", "two")} | {
        (split, name): 0 for split in (FOURTH, AFTER_ANOTHER) for name in ("one", "two")
    }
    fourth = [text for text in seen if text.count("</s>") == 3]
    ab = [text for text in fourth if text.endswith("[INST] ab [/INST]")]
    assert sorted(ab) == [
        "<s>[INST] Do one.<unk>bc [/INST] b</s>[INST] cd [/INST] c</s>[INST] de [/INST] d</s>[INST] ab [/INST]",
        "<s>[INST] Do one.<unk>lm [/INST] l</s>[INST] mn [/INST] m</s>[INST] no [/INST] n</s>[INST] ab [/INST]",
    ]
    assert len(fourth) == 16 and "pq" not in "".join(seen)


def test_one_task_alone_has_no_turns_of_another(adapted, tokenizer, monkeypatch):
    monkeypatch.setattr("training.parts.scoring.decode", echo_and_count(tokenizer, []))
    short = task("short", "ab bc cd")
    trials = [Trial(task("one", "ab bc cd de"), task("one", "ab bc cd de").test), Trial(short, short.test)]
    rows = converse(adapted, tokenizer, "base", trials, Settings(chat=True))
    assert {(row["split"], row["task"]) for row in rows} == {(FIRST, "one"), (FOURTH, "one")}
