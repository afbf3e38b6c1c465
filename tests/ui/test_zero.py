"""The page on ZeroGPU: a stand-in for the package `spaces` forks as it does, and visitors chat over HTTP."""

import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch

import hyperlora
from hyperlora.lora import Adapter
from hyperlora.ui.session import read_turns
from tests.ui.over_http import Caller
from tests.ui.test_app import started
from tests.ui.test_file import asked, given
from tests.ui.test_space import SPACE
from tests.ui.visitor import REVERSE, shelved, side, text_of, wait_until


@pytest.fixture(scope="module")
def lent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stand-in writes what happens."""
    return tmp_path_factory.mktemp("lent") / "lent"


@pytest.fixture(scope="module")
def url(lent: Path, terse_base: Path, tiny_hyperlora: Path) -> Iterator[str]:
    models = "--base", str(terse_base), "--hyperlora", str(tiny_hyperlora)
    with started(*models, **SPACE, SPACES_ZERO_GPU="true", LENT=str(lent)) as url:
        yield url


@pytest.fixture(scope="module")
def pipe(terse_base: Path, tiny_hyperlora: Path) -> Iterator[hyperlora.Pipeline]:
    """The same model without any of it."""
    pipe = hyperlora.pipeline(None, base=terse_base, hyperlora=tiny_hyperlora)
    yield pipe
    pipe.close()


@pytest.fixture
def slow(lent: Path) -> Iterator[None]:
    (flag := Path(f"{lent}.slow")).touch()
    yield
    flag.unlink()


def happened(lent: Path, what: str) -> list[dict]:
    return [line for line in map(json.loads, lent.read_text().splitlines()) if line["what"] == what]


def test_answers_are_those_of_the_model_and_written_by_workers_for_the_visitor(
    url: str, lent: Path, pipe: hyperlora.Pipeline
) -> None:
    visitor = Caller(url, "one")
    (_, made), _ = visitor.ask("generate", f"1 {REVERSE}")
    assert made == f"1 {REVERSE}" and not happened(lent, "lent")  # adapters are made without a GPU
    for description in (REVERSE, ""):
        adapter = pipe.adapt(description) if description else None
        turn, warned = visitor.send("one two", description)
        assert (turn.answer, turn.end, warned) == (pipe.chat("one two", adapter=adapter), "length", [])
    (packed,), calls = happened(lent, "packed"), happened(lent, "lent")
    assert packed["tensors"] > 0
    assert [call["visitor"] for call in calls] == ["one", "one"] and packed["pid"] not in {c["worker"] for c in calls}


def test_a_gpu_is_asked_for_as_long_as_the_request_takes(url: str, lent: Path) -> None:
    visitor = Caller(url, "two")
    for most in ("20", "40"):
        visitor.ask("send", "7", "", False, "[]", json.dumps({"max_new_tokens": most}), "one two")
    short, long = (call["seconds"] for call in happened(lent, "lent")[-2:])
    assert long - short == pytest.approx(1)


def test_sides_that_are_compared_have_a_gpu_each(url: str, lent: Path, pipe: hyperlora.Pipeline) -> None:
    visitor, before = Caller(url, "three"), len(happened(lent, "lent"))
    (name, _) = [name for name in visitor.functions if name.startswith("answer")]
    (html,), _ = visitor.ask(name, side("left", shelved(REVERSE)), "one two", 5)
    assert pipe.chat("one two", adapter=pipe.adapt(REVERSE)).split()[0] in text_of(html)
    assert len(happened(lent, "lent")) == before + 1


def test_the_rows_of_a_file_have_a_gpu_one_after_the_other(url: str, lent: Path, pipe: hyperlora.Pipeline) -> None:
    visitor, before = Caller(url, "eight"), len(happened(lent, "lent"))
    (text,), _ = visitor.ask("run", given(b"input\none\ntwo\n" + b"x" * 500), asked("input", adapter=shelved(REVERSE)))
    rows, adapter = [row for row in map(json.loads, text.splitlines()) if isinstance(row, list)], pipe.adapt(REVERSE)
    assert [row[2] for row in rows] == [pipe.chat("one", adapter), pipe.chat("two", adapter), ""]
    assert "shorten it" in rows[2][5] and len(happened(lent, "lent")) == before + 3


def test_what_needs_the_weights_in_the_pages_process_says_why_not(url: str) -> None:
    visitor = Caller(url, "four")
    turn, _ = visitor.send("one two", REVERSE)
    kept = json.dumps([{"question": turn.question, "answer": turn.answer, "by": turn.by, "end": turn.end}])
    (html,), _ = visitor.ask("tokens", shelved(REVERSE), False, kept, "")
    assert "Only chats and comparisons are lent a GPU on this Space" in html


def test_no_quota_is_one_sentence_and_the_next_message_is_answered(url: str) -> None:
    turn, warned = (visitor := Caller(url, "five")).send("there is no quota")
    assert warned == ["ZeroGPU quota exceeded: You have exceeded your quota. Try again in 1:00:00."]
    assert (turn.end, turn.answer) == ("error", "")
    assert visitor.send("one two")[0].end == "length"


def test_what_a_worker_cannot_answer_is_one_sentence(url: str) -> None:
    turn, (warned,) = Caller(url, "six").send("one " * 100)
    assert "The conversation is" in warned and "shorten it" in warned and turn.end == "error"


def test_a_worker_that_is_killed_ends_that_answer_alone(url: str, lent: Path, slow: None) -> None:
    visitor = Caller(url, "seven")
    with visitor.asked("send", "7", "", False, "[]", "", "one two") as messages:
        for message in messages:
            if message["msg"] == "process_generating":
                break
        os.kill(happened(lent, "lent")[-1]["worker"], signal.SIGKILL)
        said = list(messages)
    assert [each["log"] for each in said if each["msg"] == "log"] == ["ZeroGPU worker error: GPU task aborted."]
    assert visitor.send("one two")[0].end == "length"


@pytest.mark.parametrize("how", ["stops", "hangs up"])
def test_the_worker_writes_no_further_for_a_visitor_who(how: str, url: str, lent: Path, slow: None) -> None:
    visitor, before = Caller(url, how), len(happened(lent, "done"))
    with visitor.asked("send", "7", "", False, "[]", "", "one two") as messages:
        for message in messages:
            if message["msg"] == "process_generating":
                break
        if how == "stops":
            for handler in visitor.functions:
                if handler.startswith("stop"):  # the page's modes have one each
                    visitor.press(handler)
            (*_, completed) = (each for each in messages if each["msg"] == "process_completed")
            (turn,) = read_turns(f"[{completed['output']['data'][1]}]")
            assert turn.end == "stopped"
    wait_until(lambda: len(happened(lent, "done")) > before)
    done = happened(lent, "done")[-1]
    assert done["stopped"] and done["made"] < 40


def test_an_adapter_comes_out_of_its_packing_as_it_was(
    make_adapter: Callable[..., Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spaces", ModuleType("spaces"))
    monkeypatch.delitem(sys.modules, "hyperlora.ui.zero", raising=False)
    from hyperlora.ui.zero import pack, unpack

    monkeypatch.delitem(sys.modules, "hyperlora.ui.zero")
    adapter = make_adapter(0, description="Über alles.", notice="Far.", strength=-0.5, nearest=("Near.", 0.25))
    adapter.weights = {name: (A.bfloat16(), B.mT.contiguous().mT) for name, (A, B) in adapter.weights.items()}
    same = unpack(pickle.loads(pickle.dumps(pack(adapter))))
    for field in fields(Adapter):
        if field.name != "weights":
            assert getattr(same, field.name) == getattr(adapter, field.name)
    assert list(same.weights) == list(adapter.weights)
    for name, pair in adapter.weights.items():
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(pair, same.weights[name], strict=True))
