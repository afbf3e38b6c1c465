"""Loading a model without the lines that its libraries write each time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Inside, or in what this decorates: no bars over weights that are read in a moment; those of downloads stay.

    Nor does bitsandbytes say, when it is first imported, that it does without a kernel that this CPU could have.
    """
    from transformers.utils import logging as bars  # takes seconds to import

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    before = bars.set_tqdm_hook(lambda make, args, options: make(*args, **options | {"disable": True}))
    try:
        yield
    finally:
        bars.set_tqdm_hook(before)
