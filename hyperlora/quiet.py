"""Loading a model without the lines that its libraries write each time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Inside, or in what this decorates: no bars over weights that are read in a moment; those of downloads stay.

    Nor does bitsandbytes say, when it is first imported, that it does without a kernel that this CPU could have.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as bars  # takes seconds to import

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    shown, hub = bars.is_progress_bar_enabled(), not are_progress_bars_disabled()
    bars.disable_progress_bar()  # the Hub's too
    if hub:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
