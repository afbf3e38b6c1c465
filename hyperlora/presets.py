"""Named pairs of a base model and a hypernetwork."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperlora import smollm2
from hyperlora.config import read_json
from hyperlora.errors import UserError

SMALL_PRESET = "smollm2-135m"  # runs anywhere
TEXT_TO_LORA = "SakanaAI/text-to-lora"  # hypernetworks that the paper's authors trained
TEXT_TO_LORA_REVISION = "6e571eda2188b216f027263cd28c99c0fdcf2fa3"
GTE = "Alibaba-NLP/gte-large-en-v1.5"
GTE_REVISION = "104333d6af6f97649377c2afbde10a7704870c7b"


@dataclass(frozen=True)
class Preset:
    """What `hyperlora.pipeline(name)` loads. `base` and `hyperlora` are folders in `assets/`, or Hub ids; the base
    SmolLM2 is a package's, which goes by its name on the Hub."""

    name: str
    description: str
    base: str
    hyperlora: str
    summary: str = ""
    """Which model answers, what it can do and what not, in a line, of which the description says more."""
    multi_turn: bool = True
    """False: the model was trained on single messages, so each is answered on its own and only the last is sent."""
    markdown: bool = True
    """False: what it writes is shown as it is."""
    max_new_tokens: int = 512
    repetition_penalty: float | None = None
    """Of answers without an adapter, where it is not the generation_config's: a small model that takes the likeliest
    token repeats itself. With an adapter, what is in the prompt or was right before can be the answer again."""
    base_revision: str | None = None
    hyperlora_subfolder: str | None = None
    """Where in its repository the hypernetwork lies, in the format of `hyperlora.interop.text_to_lora`."""
    hyperlora_revision: str | None = None
    embedder: str | None = None
    """The Hub id of the description encoder, where it does not come with the package."""
    embedder_revision: str | None = None
    latent_size: int = 128
    """The hypernetwork's width and, below, that of its heads' input: what its memory is computed from."""
    head_size: int = 512


def _text_to_lora(name: str, title: str, base: str, base_revision: str, folder: str, **sizes: int) -> Preset:
    """A base model with the authors' hypernetwork for it; `sizes` where their training scripts have other widths."""
    return Preset(
        name=name,
        summary=f"{title} answers; adapters turn it to your task.",
        description=(
            "The hypernetwork is the paper authors' own, trained on several hundred tasks in English: the nearer a "
            "description is to one of them, the more its adapter helps. It adds no knowledge, and answers can be wrong."
        ),
        base=base,
        hyperlora=TEXT_TO_LORA,
        base_revision=base_revision,
        hyperlora_subfolder=f"trained_t2l/{folder}",
        hyperlora_revision=TEXT_TO_LORA_REVISION,
        embedder=GTE,
        embedder_revision=GTE_REVISION,
        **sizes,
    )


# The best first: `hyperlora.choice` takes the first that the machine can run.
_PRESETS = (
    _text_to_lora(
        "mistral-7b",
        "Mistral-7B-Instruct",
        "mistralai/Mistral-7B-Instruct-v0.2",
        "63a8b081895390a26e140280378bc85ec8bce07a",
        "mistral_7b_t2l",
    ),
    _text_to_lora(
        "llama-3.1-8b",
        "Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.1-8B-Instruct",
        "0e9e39f249a16976918f6564b8830bc894c89659",
        "llama_8b_t2l",
        latent_size=512,
        head_size=2048,
    ),
    _text_to_lora(
        "gemma-2-2b",
        "Gemma-2-2B-it",
        "google/gemma-2-2b-it",
        "299a8560bedf22ed1c72a8a11e7dce4a7f9f51f8",
        "gemma_2b_t2l",
        latent_size=512,
        head_size=2048,
    ),
    Preset(
        name=SMALL_PRESET,
        summary="SmolLM2, 135 million parameters: small, runs anywhere; a GPU gets Mistral-7B.",
        description=(
            "SmolLM2-135M-Instruct answers, with a hypernetwork that comes with HyperLoRA and was trained on everyday "
            "requests in English: classify, rewrite, extract, translate, look up. It adds no knowledge to so small a "
            "model, which is often wrong."
        ),
        base=smollm2.NAME,
        hyperlora="smollm2/hyperlora-M",
        repetition_penalty=1.15,
    ),
    Preset(
        name="mini",
        summary="The mini model answers: it edits words, and knows no facts.",
        description=(
            "It comes with HyperLoRA, has 1.6 million parameters, and works on letters, words, lists and numbers: "
            "brackets, plurals, past tenses, the third letter. It cannot summarise, correct, translate, write or solve "
            "problems, and it answers each message on its own: it does not remember the ones before."
        ),
        base="mini/base",
        hyperlora="mini/hyperlora-M",
        multi_turn=False,
        markdown=False,
        max_new_tokens=128,
    ),
)
PRESETS = {preset.name: preset for preset in _PRESETS}


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
    """A preset's path as `load_base` and `HyperLoRA.from_pretrained` take it: a folder in `assets/`, or a Hub id.

    Raises `UserError` where the folder is missing.
    """
    if not path.startswith(("mini/", "smollm2/")):
        return path
    folder = assets_dir() / path
    if not folder.is_dir():
        raise UserError(f"A bundled model (assets/{path}) is missing: install HyperLoRA again, or clone it again.")
    return str(folder)


def base_path(name: str, local_files_only: bool = False) -> str:
    """A preset's base model, or a GGUF file's, as transformers takes it: a folder, or a Hub id.

    The preset smollm2-135m's is fetched if need be, and like a GGUF file is converted into the user's cache. Raises
    `UserError` where that cannot be.
    """
    if name not in PRESETS and (path := Path(name).expanduser()).is_file():
        from hyperlora.conversion import converted

        return str(converted(path))
    base = get_preset(name).base
    return str(smollm2.base_folder(local_files_only)) if base == smollm2.NAME else asset_or_hub(base)


def load_examples(name: str | None = None) -> list[dict[str, Any]]:
    """What a preset can do: descriptions, each with a message to try it on, [{"description", "message", "answers"}].

    `answers` are those that are right, none where many are. A model without examples of its own has SmolLM2's.
    """
    path = assets_dir() / "examples.json"
    lists = read_json(path)
    examples = lists.get(name, lists.get(SMALL_PRESET)) if isinstance(lists, dict) else None
    keys = ("description", "message")
    if not isinstance(examples, list) or not all(
        isinstance(example, dict) and all(isinstance(example.get(key), str) for key in keys) for example in examples
    ):
        raise UserError(f"{path} is damaged: it must have for each preset a list of descriptions, each with a message.")
    return examples
