"""Load a base model and its tokenizer."""

from pathlib import Path
from typing import Literal, TypeVar

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available

from hyperlora.errors import UserError
from hyperlora.files import resolve_folder

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]  # never a pickle
Module = TypeVar("Module", bound=torch.nn.Module)


Precision = Literal["float32", "bfloat16", "4bit", "8bit"]


def precision(name: Precision) -> dict[str, object]:
    """The options of `load_base` for a base model held in that precision; with few bits all else is bfloat16."""
    return {
        "dtype": torch.float32 if name == "float32" else torch.bfloat16,
        "quantize": name if name in ("4bit", "8bit") else None,
    }


def load_base(
    path_or_id: str | Path,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    quantize: Literal["4bit", "8bit"] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, frozen and in evaluation mode, and its tokenizer.

    A folder is read without any network access; anything else is a Hub id. Only safetensors are read and no remote code
    is run. `quantize`: the layers' linears in 4 (NF4, double quantization) or 8 bits, all else in `dtype`. Raises
    `UserError` where the model is missing or damaged, or bitsandbytes is not installed.
    """
    options = {}
    if quantize:
        if not is_bitsandbytes_available():
            raise UserError(f"A base model in {quantize} needs a package that is not here: pip install bitsandbytes.")
        options["device_map"] = {"": device}  # quantized where it will stay
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=quantize == "4bit",
            load_in_8bit=quantize == "8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    folder = resolve_folder(path_or_id, revision, PATTERNS)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder / 'config.json'} is missing: {folder} holds no base model.")
    try:
        # One load alone: the library only logs weights that the file lacks, and starts them at random.
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds; the reader needs one sentence
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"The base model in {folder} is damaged or incomplete ({reason}).") from error
    if wrong := sorted(report["missing_keys"]) or sorted(str(key) for key in report["mismatched_keys"]):
        raise UserError(f"The base model in {folder} does not fit its config.json: {wrong[0]} is missing or misshapen.")
    if not quantize:
        model = to_device(model, device)
    return model.eval().requires_grad_(False), tokenizer


def to_device(module: Module, device: str) -> Module:
    """The module, moved; `UserError` where there is no such device."""
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"The device {device!r} cannot be used here ({str(error).splitlines()[0]}).") from error


def context_length(model: PreTrainedModel) -> int:
    """The most tokens, prompt and answer together, that the model was made for."""
    return model.config.get_text_config().max_position_embeddings
