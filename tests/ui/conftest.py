"""A tiny pipeline, and the page's model over it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hyperlora
from hyperlora.model import Model
from hyperlora.ui.handlers import Handlers
from tests.ui.visitor import Visitor, wait_until


@pytest.fixture(scope="module")
def pipe(terse_base: Path, tiny_hyperlora: Path) -> Iterator[hyperlora.Pipeline]:
    pipe = hyperlora.pipeline(None, base=terse_base, hyperlora=tiny_hyperlora)
    pipe.markdown = False  # its answers are random
    yield pipe
    pipe.close()


@pytest.fixture(scope="module")
def model(pipe: hyperlora.Pipeline) -> Model:
    """The pipeline as the page has it, loaded in the background."""
    model = Model(lambda: pipe)
    model.start()
    wait_until(lambda: model.settled)
    return model


@pytest.fixture
def on(model: Model) -> Handlers:
    return Handlers(model)


@pytest.fixture
def visitor(on: Handlers) -> Visitor:
    return Visitor(on)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, model: Model) -> Callable[..., None]:
    """answering(*pieces, end="stop"): what the model writes from now on, and how its answers end."""

    def answer(*pieces: str, end: str = "stop") -> None:
        class Stream(list):
            finish_reason, tokens = None, 0

            def stop(self) -> None: ...

            def __iter__(self) -> Iterator[str]:
                yield from pieces
                self.finish_reason = end

        monkeypatch.setattr(model.pipe, "chat", lambda *_, **__: Stream())

    return answer
