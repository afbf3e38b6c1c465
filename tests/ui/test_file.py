"""A file through an adapter, without a browser."""

import asyncio
import base64
import csv
import io
import json
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import httpx
import pytest

import hyperlora
from hyperlora.bounds import MAX_BODY
from hyperlora.model import Model
from hyperlora.table import MAX_BYTES
from hyperlora.ui.file import FIRST, MAX_RUNS, SHOWN, File
from tests.ui.visitor import REVERSE, serving, shelved, slow, wait_until

VISITOR = SimpleNamespace(session_hash="a")


@pytest.fixture
def on(model: Model) -> File:
    return File(model)


def given(data: bytes, name: str = "x.csv") -> str:
    """A file as a page sends it."""
    return json.dumps({"name": name, "data": base64.b64encode(data).decode()})


def asked(messages: object = "input", answers: object = "", adapter: str = "", describe: bool = False) -> str:
    return json.dumps({"messages": messages, "answers": answers, "adapter": adapter, "describe": describe})


def run(on: File, file: str, what: str, visitor: SimpleNamespace = VISITOR) -> tuple[dict, dict[int, list], dict]:
    """The beginning, the rows by their number, and the end."""
    *_, text = on.run(file, what, visitor)
    gone, first, *rows, last = map(json.loads, text.splitlines())
    assert gone == 0  # nothing was taken meanwhile
    return first, {row[0]: row[1:] for row in rows}, last


def test_a_file_is_looked_at_before_it_is_run(on: File) -> None:
    rows = "".join(f"{i},{'x' * 600}\n" for i in range(FIRST + 4))
    found = json.loads(on.read(given(f"id,Question\n{rows}".encode())))
    assert found == {
        "columns": ["id", "Question"],
        "rows": FIRST + 4,
        "first": [[str(i), "x" * SHOWN] for i in range(FIRST)],
        "messages": "Question",
        "answers": None,
    }
    assert json.loads(on.read(given(b"one\ntwo", "")))["first"] == [["one"], ["two"]]


def test_every_row_has_its_answer_its_mark_and_its_line_of_csv(on: File, pipe: hyperlora.Pipeline) -> None:
    adapter = pipe.adapt(REVERSE).scaled(0.5)
    right = pipe.chat("one two", adapter)
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["=n", "input", "expected"], ["1", "one two", f" {right}. "], ["2", "b", "no"]])
    csv.writer(file).writerows([["3", " ", "x"], ["4", "=c", ""], ["5", "x" * 500, ""]])
    told, rows, last = run(on, given(file.getvalue().encode()), asked("input", "expected", shelved(REVERSE, "", 0.5)))
    assert told["rows"] == 5 and last == {"end": "done"} and on._runs == {}
    assert rows[0][:5] == ["one two", right, f" {right}. ", True, ""]
    assert rows[1][1:5] == [pipe.chat("b", adapter), "no", False, ""]
    assert rows[2][1:4] == ["", "x", None] and "empty" in rows[2][4]
    assert rows[3][1:5] == [pipe.chat("=c", adapter), "", None, ""]  # no answer to compare with
    assert "shorten it" in rows[4][4] and rows[4][0] == "x" * SHOWN
    written = told["header"] + "".join(rows[i][-1] for i in range(5))
    names, *lines = csv.reader(io.StringIO(written, newline=""))
    assert names == ["'=n", "input", "expected", "answer", "right", "error"]
    assert [line[-2] for line in lines] == ["yes", "no", "", "", ""] and [line[0] for line in lines] == list("12345")
    assert lines[3][1] == "'=c" and lines[2][-1] == rows[2][4]


def test_the_description_is_in_the_prompt_where_that_is_asked(on: File, pipe: hyperlora.Pipeline) -> None:
    file, adapter = given(b"a\nb", "x.txt"), pipe.adapt(REVERSE)
    for describe in (True, False):
        _, rows, _ = run(on, file, asked("line", "", shelved(REVERSE), describe))
        assert [rows[i][1] for i in (0, 1)] == [pipe.chat(message, adapter, describe=describe) for message in "ab"]


def test_what_comes_only_grows_but_for_what_is_taken(on: File) -> None:
    """So that nothing is lost where the page reads every other text, and Gradio sends what is new alone."""
    texts = list(on.run(given(b"a\n" * 40, "x.txt"), asked("line"), VISITOR))
    assert len(texts) > 2
    for before, after in pairwise(texts):
        assert after.startswith(before) and after.endswith("\n")
    have: list[str] = []
    for i, text in enumerate(on.run(given(b"a\n" * 40, "x.txt"), asked("line"), VISITOR)):
        gone, *lines = text.splitlines()
        assert int(gone) <= len(have)
        have += lines[len(have) - int(gone) :]
        if i == 1:
            asyncio.run(on.take(len(have), VISITOR))
        if i == 2:
            assert int(gone) > 2
            asyncio.run(on.take("many", VISITOR))
            asyncio.run(on.take(-1, VISITOR))
    [last] = texts[-1:]
    rows = [line for line in last.splitlines() if line.startswith("[")]
    assert sorted(line for line in have if line.startswith("[")) == sorted(rows) and len(rows) == 40


def running(on: File, visitor: SimpleNamespace) -> Iterator[str]:
    texts = on.run(given(b"a\n" * 900, "x.txt"), asked("line"), visitor)
    next(texts)
    return texts


def test_a_run_is_stopped_at_once(on: File, pipe: hyperlora.Pipeline) -> None:
    with slow(pipe, 0.05):
        texts = running(on, VISITOR)
        asyncio.run(on.stop(VISITOR))
        *_, text = texts
        wait_until(lambda: not pipe.engine._batch.rows)
    assert json.loads(text.splitlines()[-1]) == {"end": "stopped"} and len(text.splitlines()) < 20
    assert on._runs == {}


def test_a_visitor_who_goes_ends_it(on: File, pipe: hyperlora.Pipeline) -> None:
    texts = running(on, VISITOR)
    next(texts)
    texts.close()
    wait_until(lambda: not (pipe.engine._batch.rows or pipe.engine._inbox.waiting))
    assert on._runs == {}


def test_one_run_for_each_visitor_and_few_in_all(on: File) -> None:
    runs = [running(on, SimpleNamespace(session_hash=str(i))) for i in range(MAX_RUNS)]
    [mine] = on.run(given(b"a", ""), asked("line"), SimpleNamespace(session_hash="0"))
    assert "being answered already" in json.loads(mine.splitlines()[-1])["error"]
    [others] = on.run(given(b"a", ""), asked("line"), VISITOR)
    assert f"{MAX_RUNS} files of others" in json.loads(others.splitlines()[-1])["error"]
    for texts in runs:
        texts.close()
    assert run(on, given(b"a", ""), asked("line"))[2] == {"end": "done"}


@pytest.mark.parametrize(
    ("file", "what", "sentence"),
    [
        (given(b"x" * (MAX_BYTES + 1)), asked(), "larger than 5 MB"),
        ("x" * (2 * MAX_BYTES + 1), asked(), "larger than 5 MB"),
        (given(b"input\n" + b"a\n" * 1_000_000), asked(), "more than 10,000 rows"),
        (given(bytes(range(256))), asked(), "no text in UTF-8"),
        (given(b""), asked(), "has no rows"),
        (given(b"input\na"), asked("<b>"), "no column '<b>': it has input"),
        (given(b"input\na"), asked(["input"]), "no column"),
        (given(b"input\na"), asked("input", "output"), "no column 'output'"),
        (given(b"input\na"), asked(adapter="{"), "is damaged"),
        (given(b"input\na"), "[]", "is damaged"),
        (given(b"input\na"), None, "is damaged"),
        (None, asked(), "is damaged"),
        ("[]", asked(), "is damaged"),
        ('{"name": "x", "data": "a"}', asked(), "came damaged"),
        ('{"name": "x", "data": 1}', asked(), "must be text"),
        (json.dumps({"data": ""}), asked(), "must be text"),
    ],
)
def test_what_cannot_be_run_says_why(on: File, file: object, what: object, sentence: str) -> None:
    [text] = on.run(file, what, VISITOR)
    assert sentence in json.loads(text.splitlines()[-1])["error"] and on._runs == {}


def test_an_unexpected_error_ends_the_run_in_a_sentence(
    on: File,
    pipe: hyperlora.Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_, **__):
        yield 0, "a"
        raise RuntimeError("secret")

    monkeypatch.setattr(pipe, "chat_all", fail)
    *_, text = on.run(given(b"a\nb", ""), asked("line"), VISITOR)
    assert "went wrong" in json.loads(text.splitlines()[-1])["error"] and "secret" not in text and on._runs == {}


@pytest.mark.parametrize("chunked", [False, True])
def test_what_is_too_large_for_the_page_is_refused_before_it_is_parsed(model: Model, chunked: bool) -> None:
    """A paste of 50 MB; as a browser says its length, and in pieces that say nothing."""
    body = b'{"data": ["' + b"x" * 50_000_000 + b'"]}'
    with serving(model) as url:
        content = (body[i : i + 2**20] for i in range(0, len(body), 2**20)) if chunked else body
        address, headers = f"{url}gradio_api/queue/join", {"content-type": "application/json"}
        answer = httpx.post(address, content=content, headers=headers, timeout=60)
        assert answer.status_code == 413
        if not chunked:  # an endpoint that is called as the route of uploads
            assert httpx.post(f"{url}gradio_api/run/upload", content=body, headers=headers).status_code == 413
        assert chunked or f"{MAX_BODY >> 20} MB" in answer.json()["detail"]
        short = httpx.post(address, content=b'{"data": [', headers=headers)
        assert short.status_code == 422  # it was parsed
