"""HyperLoRA: describe a task, get a LoRA adapter for it, chat with the adapted model.

`import hyperlora` is light: torch and transformers are imported with the first name that needs them.
"""

import os
from importlib import import_module

from hyperlora.errors import UserError

# Before torch is imported: threads that wait for each other in a parallel loop sleep after some microseconds, where
# libgomp has them spin for milliseconds, so that two processes on the same cores took each other's time.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
__all__ = ["Adapter", "HyperLoRA", "Pipeline", "Recipe", "UserError", "base_path", "pipeline"]

# No module may be called `pipeline`: importing it would hide the function of that name.
_HOMES = {"pipeline": "pipe", "Pipeline": "pipe", "HyperLoRA": "generator", "Adapter": "lora", "base_path": "presets"}
_HOMES |= {"Recipe": "recipe"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hyperlora' has no attribute {name!r}")
    return getattr(import_module(f"hyperlora.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
