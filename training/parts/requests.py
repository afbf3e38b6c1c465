"""Everyday requests to a small assistant, each with a few messages and the answers that are right; never trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hyperlora.config import read_json
from hyperlora.errors import UserError
from training.tasks import Example, Task

PATH = Path(__file__).with_name("requests.json")  # a hundred of our own, with four messages each
MAX_BYTES = 2**24


@dataclass(frozen=True)
class Request:
    """What somebody asks for once, and what it is asked of. trained: whether some real task is of its kind."""

    description: str
    kind: str
    trained: bool
    examples: tuple[Example, ...]


def everyday_requests(path: str | Path = PATH) -> list[Request]:
    """The requests of a file: [{"description", "kind", "trained", "messages": [{"input", "outputs": [..]}, ..]}, ..].

    "kind" and "trained" may be absent. Raises UserError, naming the file and the request, where it is another form.
    """
    entries = read_json(Path(path), MAX_BYTES)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must hold a list of requests.")
    return [_request(entry, f"{path}, request {number},") for number, entry in enumerate(entries, 1)]


def _request(entry: object, where: str) -> Request:
    if not isinstance(entry, Mapping) or not _is_text(entry.get("description")):
        raise UserError(f'{where} must be an object with a "description" that is not blank.')
    messages, kind, trained = entry.get("messages"), entry.get("kind", ""), entry.get("trained", False)
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise UserError(f'{where} must have "messages": a list of {{"input": text, "outputs": [texts]}}.')
    if not isinstance(kind, str) or type(trained) is not bool:
        raise UserError(f'{where}: "kind" must be a text and "trained" true or false, or absent.')
    examples = (Example(input=m["input"], output=m["outputs"][0], outputs=m["outputs"]) for m in messages)
    return Request(entry["description"], kind, trained, tuple(examples))


def _is_message(value: object) -> bool:
    outputs = value.get("outputs") if isinstance(value, Mapping) else None
    return isinstance(outputs, list) and bool(outputs) and all(map(_is_text, [value.get("input"), *outputs]))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def as_tasks(requests: list[Request]) -> list[Task]:
    """Each as a task of its own, to be measured: its description is unseen, its messages are the tests."""
    return [
        Task(f"request-{number:03}", [], [request.description], test=list(request.examples), group=request.kind)
        for number, request in enumerate(requests, 1)
    ]
