"""The pipeline behind the page: loaded in the background, with the adapters of the latest descriptions at hand."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from hyperlora.errors import UserError

if TYPE_CHECKING:  # torch and transformers take seconds to import, and the page opens before that
    from hyperlora.lora import Adapter
    from hyperlora.pipe import Pipeline

MAX_ADAPTERS = 64
log = logging.getLogger(__name__)


class Model:
    """`load()` runs in the background after `start()`; `error` is the sentence to show if it failed."""

    def __init__(self, load: Callable[[], "Pipeline"]):
        self.error: str | None = None
        self._pipe: Pipeline | None = None
        self._load = load
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def settled(self) -> bool:
        """Whether the model is there, or will not come."""
        return self._pipe is not None or self.error is not None

    @property
    def pipe(self) -> "Pipeline":
        """The loaded pipeline; `UserError` says why there is none."""
        if self._pipe is None:
            raise UserError(self.error or "The model is still loading: try again in a moment.")
        return self._pipe

    def start(self) -> None:
        threading.Thread(target=self._run, name="load-model", daemon=True).start()

    def _run(self) -> None:
        try:
            pipe = self._load()
            pipe.adapt("Warm up.")  # the first time is slower, and no visitor need see it
            self._pipe = pipe
        except UserError as error:
            log.error("The model could not be loaded: %s", error)
            self.error = str(error)
        except Exception:
            log.exception("The model could not be loaded")
            self.error = "The model could not be loaded; the server's log says why."

    def adapt(self, description: str) -> "Adapter":
        """The description's adapter, generated anew; `UserError` for a bad description."""
        adapter = self.pipe.adapt(description)
        with self._lock:
            self._adapters[description] = adapter
            while len(self._adapters) > MAX_ADAPTERS:
                self._adapters.popitem(last=False)
        return adapter

    def adapter(self, description: str) -> "Adapter":
        """The description's adapter, from memory where it is still there, or generated anew: it is the same."""
        with self._lock:
            if description in self._adapters:
                self._adapters.move_to_end(description)
                return self._adapters[description]
        return self.adapt(description)
