"""Named pairs of a base model and a hypernetwork."""

from dataclasses import dataclass
from pathlib import Path

from hyperlora.config import read_json
from hyperlora.errors import UserError

MAX_EXAMPLES_FILE = 2**20  # bytes


@dataclass(frozen=True)
class Preset:
    """What `hyperlora.pipeline(name)` loads. `base` and `hyperlora` are folders in `assets/`, or Hub ids."""

    name: str
    description: str
    base: str
    hyperlora: str
    multi_turn: bool
    """False: the model was trained on single messages, so each is answered on its own and only the last is sent."""
    max_new_tokens: int = 512
    base_revision: str | None = None
    hyperlora_subfolder: str | None = None
    """Where in its repository the hypernetwork lies, in the format of `hyperlora.interop.text_to_lora`."""
    hyperlora_revision: str | None = None


PRESETS = {
    "mini": Preset(
        name="mini",
        description=(
            "A tiny model that comes with HyperLoRA. It knows operations on text (letters, words, lists, numbers), "
            "not the world, and it answers each message on its own: it does not remember the ones before."
        ),
        base="mini/base",
        hyperlora="mini/hyperlora-M",
        multi_turn=False,
        max_new_tokens=128,
    ),
}


def get_preset(name: str) -> Preset:
    """The preset of that name; `UserError` where there is none."""
    if name not in PRESETS:
        raise UserError(f"There is no preset {name!r}; there is {', '.join(PRESETS)}.")
    return PRESETS[name]


def assets_dir() -> Path:
    """`assets/` beside the package in a checkout, or its copy inside an installed wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "assets", package / "_assets"):
        if (folder / "mini").is_dir():
            return folder
    raise UserError("The bundled models (assets/mini) are missing: install HyperLoRA again, or clone it again.")


def asset_or_hub(path: str) -> str:
    """A preset's path as `load_base` and `HyperLoRA.from_pretrained` take it: a folder in `assets/`, or a Hub id."""
    bundled = path.startswith("mini/")
    return str(assets_dir() / path) if bundled else path


def load_examples() -> list[dict[str, str]]:
    """The example descriptions, each with a message to try it on: [{"description": ..., "message": ...}]."""
    path = assets_dir() / "examples.json"
    examples = read_json(path, MAX_EXAMPLES_FILE)
    keys = ("description", "message")
    if not isinstance(examples, list) or not all(
        isinstance(example, dict) and all(isinstance(example.get(key), str) for key in keys) for example in examples
    ):
        raise UserError(f"{path} is damaged: it must be a list of descriptions, each with a message.")
    return examples
