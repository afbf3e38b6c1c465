"""The answers that an evaluation has so far, in a file beside its results: one that was killed goes on where it was."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from hyperlora.errors import UserError
from hyperlora.files import writing
from hyperlora.lora import Adapter

MAX_FILE_BYTES = 2**30
KEY_BYTES = 16


class Answers:
    """Answers by what they follow from: the base, the adapter's weights, the prompt's tokens and where it is cut.

    A line of the file is [key, answer] as JSON; one that a killed process did not end is taken away. Each answer is
    decoded once, whatever the method, seed or task it is asked for.
    """

    def __init__(self, path: str | Path | None = None, base: str = ""):
        """path: the file, which need not be there; None: in memory alone. base: a digest of all that every answer
        follows from, such as the base's weights and dtype. Raises UserError where the file is another's."""
        self.path, self.base = Path(path) if path else None, base
        self.found: dict[str, str] = {}
        self._digests: dict[int, tuple[Adapter, bytes]] = {}  # by id, the adapter beside it so that it keeps that id
        if self.path and self.path.exists():
            self._read()

    def _read(self) -> None:
        if self.path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{self.path} is larger than {MAX_FILE_BYTES >> 20} MiB: remove it, or move it away.")
        data = self.path.read_bytes()
        whole, _, cut = data.rpartition(b"\n")
        try:
            self.found = {_text(key): _text(answer) for key, answer in map(json.loads, whole.splitlines())}
        except (ValueError, TypeError):
            raise UserError(f"{self.path} does not hold an evaluation's answers: remove it, or move it away.") from None
        if cut:
            with writing(self.path, "free some space and start again"), self.path.open("r+b") as file:
                file.truncate(len(data) - len(cut))

    def key(self, prompt: Sequence[int], adapter: Adapter | None, limit: int, router: str = "") -> str:
        """Of one answer. router: a digest of what changes the base's forward beside the adapter."""
        facts = json.dumps([self.base, router, limit, *prompt]).encode()
        return hashlib.blake2b(facts + self._of(adapter), digest_size=KEY_BYTES).hexdigest()

    def _of(self, adapter: Adapter | None) -> bytes:
        if adapter is None:
            return b""
        if id(adapter) not in self._digests:
            self._digests[id(adapter)] = adapter, weights_digest(adapter)
        return self._digests[id(adapter)][1]

    def add(self, new: dict[str, str]) -> None:
        """Keep them, and write them down before anything else is done."""
        self.found |= new
        if self.path:
            lines = "".join(json.dumps([key, answer], ensure_ascii=False) + "\n" for key, answer in new.items())
            with writing(self.path, "free some space and start again"), self.path.open("ab") as file:
                file.write(lines.encode())

    def forget_adapters(self) -> None:
        """Let go of the adapters that were asked about, which are large."""
        self._digests.clear()


def weights_digest(adapter: Adapter) -> bytes:
    """Of its ΔW's factors and their scale."""
    found = hashlib.blake2b(repr(adapter.scale).encode(), digest_size=KEY_BYTES)
    for module in sorted(adapter.weights):
        found.update(module.encode())
        for factor in adapter.weights[module]:
            found.update(factor.detach().cpu().float().contiguous().numpy())
    return found.digest()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value
