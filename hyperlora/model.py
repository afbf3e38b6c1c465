"""The pipeline behind the page: loaded in the background, with the adapters of the latest descriptions at hand.

Whatever a visitor asks for, on the page or elsewhere, is asked for here, so that the limits hold for all of it.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hyperlora.errors import UserError
from hyperlora.hub import Cancelled
from hyperlora.limits import Limits
from hyperlora.recipe import Recipe, within_rank

if TYPE_CHECKING:  # torch and transformers take seconds to import, and the page opens before that
    from hyperlora.chat import ChatStream
    from hyperlora.lora import Adapter
    from hyperlora.pipe import Pipeline
    from hyperlora.ui.session import Shelved

MAX_ADAPTERS, MAX_UPLOADS = 64, 32
MAX_BYTES = 2**30  # of each of the two
log = logging.getLogger(__name__)


class Model:
    """`load()` runs in the background after `start()`; `error` is the sentence to show if it failed.

    Before a large download it may `ask`, which waits until a visitor of the page says something.
    """

    def __init__(self, load: Callable[[], "Pipeline"], limits: Limits | None = None):
        self.limits = limits or Limits()
        self.seconds: float | None = None
        """How long loading took."""
        self.error: str | None = None
        self.question: str | None = None
        """The download that waits for a visitor's answer."""
        self.download: tuple[float, float, float] | None = None
        """The one that runs: bytes so far, bytes in all (0 at first), seconds since it began."""
        self._answered = threading.Event()
        self._refused: float | None = None
        """The size of the download that is not wanted any more; 0 for the next one."""
        self._began = 0.0
        self._pipe: Pipeline | None = None
        self._load = load
        self._adapters: OrderedDict[str, Future[Adapter]] = OrderedDict()
        self._uploads: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def settled(self) -> bool:
        """Whether the model is there, or will not come."""
        return self.state != "loading"

    @property
    def state(self) -> Literal["loading", "ready", "failed"]:
        return "ready" if self._pipe is not None else "failed" if self.error is not None else "loading"

    @property
    def pipe(self) -> "Pipeline":
        """The loaded pipeline; `UserError` says why there is none."""
        if self._pipe is None:
            raise UserError(self.error or "The model is still loading: try again in a moment.")
        return self._pipe

    def start(self) -> None:
        threading.Thread(target=self.run, name="load-model", daemon=True).start()

    def run(self) -> None:
        """Load it in this thread."""
        began = time.monotonic()
        try:
            pipe = self._load()
            pipe.adapt("Warm up.")  # the first time is slower, and no visitor need see it
            self.seconds = time.monotonic() - began
            self._pipe = pipe
        except UserError as error:
            log.error("The model could not be loaded: %s", error)
            self.error = str(error)
        except Exception:
            log.exception("The model could not be loaded")
            self.error = "The model could not be loaded; the server's log says why."

    # ---- a download, while it is loaded ----

    def ask(self, question: str) -> None:
        """Wait for a visitor's answer; `Cancelled` where it is no."""
        self.question = question
        self._answered.wait()
        if self.download is None:
            self._refused = None  # it does not begin
            raise Cancelled

    def answer(self, yes: bool) -> None:
        """A visitor's answer; no also ends a download that runs."""
        if self.question is None:
            if yes or self.download is None:
                return  # a page that is a moment late
            self._refused = self.download[1]
        self.question = None
        self.download = (0.0, 0.0, 0.0) if yes else None
        self._answered.set()

    def report(self, done: float, size: float) -> None:
        """Bytes of the download so far and in all; `Cancelled` where it is not wanted any more."""
        if self._refused in (0.0, size):
            self._refused = size
            raise Cancelled
        if self.download is None or self.download[1] != size:
            self._began = time.monotonic()
        self.download = (done, size, time.monotonic() - self._began) if done < size else None

    # ---- adapters ----

    def adapter(self, recipe: Recipe) -> "Adapter":
        """The recipe's adapter: from memory, or made now, once however many ask. `UserError` for a bad one, for an
        upload that is not here, and for one too many."""
        pipe, key = self.pipe, recipe.to_json()
        for leaf in recipe.leaves:
            self.limits.check("The description", leaf.description or "", self.limits.description)
        if recipe.upload is not None:
            return self._make(pipe, recipe)
        with self._lock:
            made = self._adapters.get(key)
            first = made is None
            if first:
                self.limits.take("adapters")
                made = self._adapters[key] = Future()
            self._adapters.move_to_end(key)
            while len(self._adapters) > MAX_ADAPTERS or sum(map(_bytes, self._adapters.values())) > MAX_BYTES:
                self._adapters.popitem(last=False)
        if first:
            try:
                made.set_result(self._make(pipe, recipe))
            except BaseException as error:
                with self._lock:
                    self._adapters.pop(key, None)
                made.set_exception(error)
        return made.result()

    def _make(self, pipe: "Pipeline", recipe: Recipe) -> "Adapter":
        if recipe.description is not None:
            return pipe.adapt(recipe.description).scaled(recipe.strength)
        own = {leaf.description: self.adapter(Recipe(leaf.description)) for leaf in recipe.leaves if leaf.description}
        with self._lock:
            for leaf in recipe.leaves:
                if leaf.upload in self._uploads:
                    self._uploads.move_to_end(leaf.upload)
            uploads = dict(self._uploads)
        # In the engine's thread, as all that computes.
        return pipe.engine.call(lambda: recipe.make(own.__getitem__, uploads))

    def has(self, recipe: Recipe) -> bool:
        """Whether the recipe's adapter is in memory."""
        with self._lock:
            made = self._adapters.get(recipe.to_json())
            return recipe.upload in self._uploads or (made is not None and made.done())

    def take(self, archive: Path) -> tuple[Recipe, "Adapter"]:
        """An adapter in somebody's zip: the recipe by which a shelf names it, and the adapter, which is kept until
        others need its room. `UserError` for what is none, or does not fit."""
        pipe = self.pipe
        self.limits.take("adapters")
        adapter = pipe.load_adapter(archive)
        # Nothing of this machine's, which a path in it might name, gets into an export.
        adapter = replace(adapter, base_model=pipe.hyperlora.config.base_model, base_revision=None)
        digest, adapter = pipe.engine.call(lambda: (adapter.digest(), within_rank(adapter)))
        with self._lock:
            self._uploads[digest] = adapter
            self._uploads.move_to_end(digest)
            while len(self._uploads) > MAX_UPLOADS or sum(map(_size, self._uploads.values())) > MAX_BYTES:
                self._uploads.popitem(last=False)
        return Recipe(upload=digest), adapter

    def of(self, shelved: "Shelved") -> "Adapter":
        """The adapter of a shelf, at its strength; `UserError` for what cannot be made."""
        return self.adapter(shelved.recipe).scaled(shelved.strength)

    def export(self, adapter: "Adapter", folder: str) -> Path:
        """Write the adapter's PEFT zip into the folder; `UserError` for one too many."""
        from hyperlora.export import export, export_name

        self.limits.take("exports")
        return export(self.pipe, adapter, "peft", Path(folder, export_name(adapter, "peft")))

    # ---- chats ----

    def allow(self, message: str, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a chat that its visitor may have now, its answer no longer than answers may be. `UserError`
        where it is one too many, or the message or the answer that is asked for is too long."""
        most = self.limits.answer
        self.limits.check("The message", message, self.limits.message)
        if options.get("max_new_tokens", 0) > most:
            raise UserError(f"An answer has at most {most:,} tokens here: ask for no more.")
        self.limits.take("chats")
        return {"max_new_tokens": min(self.pipe.defaults.max_new_tokens, most)} | options

    def chat(
        self, messages: list[dict[str, str]], adapter: "Adapter | None", describe: bool | None, options: dict[str, Any]
    ) -> tuple["ChatStream", int]:
        """-> the answer as it comes, and how many of the oldest messages were left out, since they did not fit;
        `options` are those that were allowed."""
        given = self.fit(messages, adapter, describe, options)
        stream = self.pipe.chat(given, adapter=adapter, stream=True, describe=describe, **options)
        return stream, len(messages) - len(given)

    def fit(
        self, messages: list[dict[str, str]], adapter: "Adapter | None", describe: bool | None, options: dict[str, Any]
    ) -> list[dict[str, str]]:
        """The messages without as many of the oldest as leave no room for an answer."""
        pipe = self.pipe
        return pipe.shorten(messages, adapter, describe, room=min(options["max_new_tokens"], pipe.engine.context // 4))


def _bytes(made: "Future[Adapter]") -> int:
    return _size(made.result()) if made.done() and made.exception() is None else 0


def _size(adapter: "Adapter") -> int:
    return sum(tensor.nbytes for pair in adapter.weights.values() for tensor in pair)
