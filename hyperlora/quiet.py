"""Loading a model without the lines that its libraries write each time."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock, _before = threading.Lock(), []  # the hook that was there before each of those that are inside now


@contextmanager
def quietly() -> Iterator[None]:
    """Inside, or in what this decorates: no bars over weights that are read in a moment; those of downloads stay.

    Nor does bitsandbytes say, when it is first imported, that it does without a kernel that this CPU could have.
    """
    from transformers.utils import logging as bars  # takes seconds to import

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    with _lock:
        _before.append(bars.set_tqdm_hook(lambda make, args, options: make(*args, **options | {"disable": True})))
    try:
        yield
    finally:
        with _lock:
            # Threads leave in any order: the last one puts back what the first one found.
            if len(_before) > 1:
                _before.pop()
            else:
                bars.set_tqdm_hook(_before.pop())
