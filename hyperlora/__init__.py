"""HyperLoRA: describe a task, get a LoRA adapter for it, chat with the adapted model.

`import hyperlora` is light: torch and transformers are imported with the first name that needs them.
"""

from importlib import import_module

from hyperlora.errors import UserError

__version__ = "0.1.0"
__all__ = ["Adapter", "HyperLoRA", "Pipeline", "UserError", "base_path", "pipeline"]

# No module may be called `pipeline`: importing it would hide the function of that name.
_HOMES = {"pipeline": "pipe", "Pipeline": "pipe", "HyperLoRA": "generator", "Adapter": "lora", "base_path": "presets"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hyperlora' has no attribute {name!r}")
    return getattr(import_module(f"hyperlora.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
