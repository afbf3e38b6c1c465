"""A file of messages (CSV, JSON lines, or a message a line), and the same file with answers beside them."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hyperlora.errors import UserError, shown
from hyperlora.text import check_text

MAX_BYTES = 5 * 2**20
MAX_ROWS, MAX_COLUMNS, MAX_CELL = 10_000, 50, 20_000
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # how a cell begins that a spreadsheet may run
LINES = "line"  # the column of a file without columns
MESSAGES = ("input", "message", "question", "prompt", "instruction", "text", LINES)  # as people name such columns
ANSWERS = ("output", "expected", "answer", "label", "target", "completion", "response", "reply")
NUMBERS = ("id", "index", "number", "row", "nr", "no", "#")
PAIR = ("\t", " => ")  # between the two sides of a line


@dataclass(frozen=True)
class Table:
    """Rows of text, each with a cell for every column."""

    columns: list[str]
    rows: list[list[str]]

    def column(self, name: str) -> list[str]:
        """The cells of that column; `UserError` where there is none."""
        if name not in self.columns:
            raise UserError(f"The file has no column {shown(name)}: it has {', '.join(self.columns)}.")
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    def guess(self) -> tuple[str, str | None]:
        """The column that looks like messages, and the one like the answers that are expected, None for none."""

        def named(names: Sequence[str]) -> str | None:
            return next((column for name in names for column in self.columns if column.lower() == name), None)

        answers = named(ANSWERS)
        messages = named(MESSAGES) or next((column for column in self.columns if column != answers), self.columns[0])
        if answers is None and len(self.columns) == 2:
            answers = next(column for column in self.columns if column != messages)
        known = answers and answers != messages and answers.lower() not in NUMBERS
        return messages, answers if known else None


def read_table(data: bytes, name: str) -> Table:
    """A file's bytes -> its rows, read as the end of its name says: .csv and .tsv, whose first line names the columns;
    .jsonl and .json, objects of text and numbers; anything else a message a line, blank ones left out, or where each
    line has a tab, or each a " => ", an input and its output.

    Raises `UserError` where it is too large, no text, or not of that form.
    """
    if len(data) > MAX_BYTES:
        raise too_large()
    try:
        text = check_text(data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"), "The file")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError("The file is no text in UTF-8: save it as a CSV in UTF-8, or as plain text.")
    kind = name.rsplit(".", 1)[-1].lower()
    if kind in ("csv", "tsv"):
        table = _of_csv(text, "\t" if kind == "tsv" else None)
    elif kind in ("json", "jsonl", "ndjson"):
        table = _of_objects(text)
    else:
        table = _of_lines(text)
    if not table.rows:
        raise UserError("The file has no rows" + (" under its first line." if kind in ("csv", "tsv") else "."))
    if len(table.rows) > MAX_ROWS:
        raise _too_long()
    if len(table.columns) > MAX_COLUMNS:
        raise _too_wide()
    if any(len(cell) > MAX_CELL for row in table.rows for cell in row):
        raise UserError(f"A cell of the file is longer than {MAX_CELL:,} characters: shorten it.")
    return table


def write_table(table: Table, added: Mapping[str, Sequence[str]]) -> str:
    """The table as CSV with more columns, a cell a row each; before what a spreadsheet would run there is a '."""
    columns = list(table.columns)
    for name in added:
        while name in columns:
            name += "'"
        columns.append(name)
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(map(_guarded, columns))
    for row, *more in zip(table.rows, *added.values(), strict=True):
        writer.writerow(map(_guarded, [*row, *more]))
    return out.getvalue()


def too_large() -> UserError:
    return UserError(f"The file is larger than {MAX_BYTES >> 20} MB: take a part of it.")


def _guarded(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _of_csv(text: str, delimiter: str | None) -> Table:
    if delimiter is None:
        first = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=first.count)  # a comma where there is none of them
    rows = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            if len(row) > MAX_COLUMNS:
                raise _too_wide()
            rows += [row] if any(cell.strip() for cell in row) else []
            if len(rows) > MAX_ROWS + 1:
                raise _too_long()
    except csv.Error as error:
        raise UserError(f"The file is no CSV ({error}): check its quotes, or save it again.") from None
    if not rows:
        return Table([], [])
    columns = [cell.strip() or f"column {i}" for i, cell in enumerate(rows[0], 1)]
    if twice := [name for i, name in enumerate(columns) if name in columns[:i]]:
        raise UserError(f"The file names the column {shown(twice[0])} twice: give each a name of its own.")
    for number, row in enumerate(rows[1:], 2):
        if len(row) > len(columns):
            raise UserError(f"Row {number} of the file has more cells than its first line has names: check its quotes.")
    return Table(columns, [row + [""] * (len(columns) - len(row)) for row in rows[1:]])


def _of_lines(text: str) -> Table:
    lines = [line for line in text.splitlines() if line.strip()]
    for mark in PAIR:
        if all(mark in line for line in lines):
            return Table(["input", "output"], [[side.strip() for side in line.split(mark, 1)] for line in lines])
    return Table([LINES], [[line.strip()] for line in lines])


def _of_objects(text: str) -> Table:
    try:
        if text.lstrip().startswith("["):
            objects = json.loads(text)
        else:
            objects = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        raise UserError("The file is no JSON: write an object a line, or a list of objects.") from None
    if len(objects) > MAX_ROWS:
        raise _too_long()
    columns: dict[str, None] = {}
    for number, item in enumerate(objects, 1):
        if not isinstance(item, dict) or not all(isinstance(v, str | int | float | None) for v in item.values()):
            raise UserError(f'Item {number} of the file is no object of texts and numbers, as in {{"input": "..."}}.')
        columns |= dict.fromkeys(item)
        if len(columns) > MAX_COLUMNS:
            break
    names = [check_text(name, "A name in the file") for name in columns]
    return Table(names, [[_cell(item.get(name)) for name in names] for item in objects])


def _cell(value: str | float | None) -> str:
    return "" if value is None else check_text(value if isinstance(value, str) else json.dumps(value), "The file")


def _too_wide() -> UserError:
    return UserError(f"The file has more than {MAX_COLUMNS} columns: take fewer.")


def _too_long() -> UserError:
    return UserError(f"The file has more than {MAX_ROWS:,} rows: take a part of it.")
