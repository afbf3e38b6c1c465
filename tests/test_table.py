"""Files of messages as people have them, and as they should not be."""

import csv
import io
import json

import pytest

from hyperlora.errors import UserError
from hyperlora.table import MAX_BYTES, MAX_CELL, MAX_COLUMNS, MAX_ROWS, Table, read_table, write_table

ROWS = [["one, two", "a"], ['say "hi"', ""], ["two\nlines", "ü 🙂"]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_csv_is_read_as_pythons_own_module_writes_it(delimiter, encoding, end):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator=end).writerows([["input", " output "], *ROWS, [], ["last"]])
    table = read_table(out.getvalue().encode(encoding), "Some.File.CSV")
    assert table == Table(["input", "output"], [*ROWS, ["last", ""]])
    assert table.column("output") == ["a", "", "ü 🙂", ""]
    with pytest.raises(UserError, match="no column 'answer': it has input, output"):
        table.column("answer")


@pytest.mark.parametrize("lines", [True, False])
def test_objects_are_rows(lines):
    objects = [{"input": "a", "n": 1}, {"n": None, "b": True, "input": "x\ny"}, {"n": 2.5}]
    text = "\n\n".join(map(json.dumps, objects)) if lines else json.dumps(objects, indent=1)
    table = read_table(text.encode(), "x.jsonl" if lines else "x.json")
    assert table == Table(["input", "n", "b"], [["a", "1", ""], ["x\ny", "", "true"], ["", "2.5", ""]])


@pytest.mark.parametrize("name", ["x.txt", "x", "x.md"])
def test_anything_else_has_a_message_a_line(name):
    assert read_table(b"one, two\n\n  three \r\n", name).rows == [["one, two"], ["three"]]


@pytest.mark.parametrize("mark", ["\t", " => "])
def test_lines_with_two_sides_are_inputs_and_outputs(mark):
    table = read_table(f"a b{mark}[a] [b]\n\n c{mark}d => e\r\n".encode(), "pairs.txt")
    assert table == Table(["input", "output"], [["a b", "[a] [b]"], ["c", "d => e"]])
    assert read_table(f"a{mark}b\nc".encode(), "").columns == ["line"]  # not all have


@pytest.mark.parametrize(
    ("columns", "messages", "answers"),
    [
        (["line"], "line", None),
        (["id", "Question", "ANSWER"], "Question", "ANSWER"),
        (["label", "text"], "text", "label"),
        (["country", "capital"], "country", "capital"),
        (["text", "Id"], "text", None),
        (["a", "b", "c"], "a", None),
        (["answer"], "answer", None),
        (["output", "n", "m"], "n", "output"),
    ],
)
def test_columns_are_known_by_their_names(columns, messages, answers):
    assert Table(columns, []).guess() == (messages, answers)


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=cmd|"/c calc"!A1'])
def test_what_a_spreadsheet_would_run_is_text(cell):
    """In answers, in the file's own cells and in names."""
    written = write_table(Table([cell], [[cell], ["a"]]), {"answer": ["b", cell]})
    name, *rows = csv.reader(io.StringIO(written, newline=""))
    assert name == [f"'{cell}", "answer"] and rows == [[f"'{cell}", "b"], ["a", f"'{cell}"]]


def test_answers_stand_beside_their_rows():
    table = Table(["input", "answer"], ROWS)
    written = write_table(table, {"answer": ["1", "2", "3"], "right": ["yes", "no", ""]})
    assert read_table(written.encode(), "x.csv") == Table(
        ["input", "answer", "answer'", "right"],
        [[*row, answer, right] for row, answer, right in zip(ROWS, "123", ["yes", "no", ""], strict=True)],
    )


@pytest.mark.parametrize(
    ("data", "name", "sentence"),
    [
        (b"x" * (MAX_BYTES + 1), "x.csv", "larger than 5 MB"),
        (b"a\n" * 1_000_000, "x.csv", f"more than {MAX_ROWS:,} rows"),
        (b"a\n" * (MAX_ROWS + 1), "x.txt", f"more than {MAX_ROWS:,} rows"),
        (b'{"a": 1}\n' * (MAX_ROWS + 1), "x.jsonl", f"more than {MAX_ROWS:,} rows"),
        (b"", "x.csv", "has no rows under its first line"),
        (b"input,output\n\n", "x.csv", "has no rows under its first line"),
        (b" \n", "x.txt", "has no rows."),
        (b"[]", "x.json", "has no rows."),
        (b"PK\x03\x04\0\0", "x.csv", "no text in UTF-8"),
        ("é".encode("latin-1"), "x.txt", "no text in UTF-8"),
        (b"\xff\xfe\x00\xd8", "x.txt", "no text in UTF-8"),
        (b'a,b\n"1,2\n', "x.csv", "no CSV"),
        (b'a,b\n"1"x,2\n', "x.csv", "no CSV"),
        (b"a,b\n1,2,3\n", "x.csv", "Row 2 of the file has more cells"),
        (b"a,a\n1,2\n", "x.csv", "names the column 'a' twice"),
        (b",".join(b"%d" % i for i in range(MAX_COLUMNS + 1)) + b"\n1", "x.csv", "more than 50 columns"),
        (json.dumps({str(i): i for i in range(99)}).encode(), "x.jsonl", "more than 50 columns"),
        (b"a\n" + b"x" * (MAX_CELL + 1), "x.csv", "longer than 20,000 characters"),
        (b"a\n" + b"x" * 200_000, "x.csv", "no CSV"),  # the library's own limit
        (b"{", "x.jsonl", "no JSON"),
        (b"[" * 100_000, "x.json", "no JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "x.jsonl", "no JSON"),
        (b'["a"]', "x.json", "Item 1 of the file is no object"),
        (b'{"a": "b"}\n{"a": ["b"]}', "x.jsonl", "Item 2 of the file is no object"),
        (rb'{"a": "\ud800"}', "x.jsonl", "The file holds '.ud800'"),
        (rb'{"\ud800": "a"}', "x.jsonl", "A name in the file holds"),
    ],
)
def test_files_that_are_not_taken(data, name, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        read_table(data, name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_more_columns_than_a_table_has_are_refused_before_they_are_compared():
    with pytest.raises(UserError, match="more than 50 columns"):
        read_table(b"," * (4 * 2**20), "wide.csv")
    with pytest.raises(UserError, match="more than 50 columns"):
        read_table(b"a,b\n" + b"," * (4 * 2**20), "wide.csv")
