"""A hundred everyday requests to a small assistant, each with four messages and their answers; never trained on."""

from dataclasses import dataclass
from pathlib import Path

from hyperlora.config import read_json
from training.tasks import Example

PATH = Path(__file__).with_name("requests.json")


@dataclass(frozen=True)
class Request:
    """What somebody asks for once, and what it is asked of. trained: whether some real task is of its kind."""

    description: str
    kind: str
    trained: bool
    examples: tuple[Example, ...]


def everyday_requests() -> list[Request]:
    return [
        Request(
            entry["description"],
            entry["kind"],
            entry["trained"],
            tuple(Example(output=m["outputs"][0], **m) for m in entry["messages"]),
        )
        for entry in read_json(PATH)
    ]
