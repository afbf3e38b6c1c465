"""Load a base model and its tokenizer."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available, is_flash_attn_2_available

from hyperlora.config import read_json
from hyperlora.conversion import converted
from hyperlora.devices import device_named
from hyperlora.errors import UserError, first_line
from hyperlora.files import resolve_folder
from hyperlora.prompt import turn_end
from hyperlora.quiet import quietly

# Never a pickle, nor a repository's second copy of the weights under another name (consolidated.safetensors).
PATTERNS = ["*.json", "model*.safetensors", "*.jinja", "tokenizer.model"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("eager", "sdpa", "flash_attention_2")
AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps that accelerate makes itself
DeviceMap = str | Mapping[str, str | int | torch.device]


Precision = Literal["float32", "bfloat16", "4bit", "8bit"]


def precision(name: Precision) -> dict[str, object]:
    """The options of `load_base` for a base model held in that precision; with few bits all else is bfloat16."""
    return {
        "dtype": torch.float32 if name == "float32" else torch.bfloat16,
        "quantize": name if name in ("4bit", "8bit") else None,
    }


@quietly()
def load_base(
    path_or_id: str | Path,
    revision: str | None = None,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: str = "cpu",
    quantize: Literal["4bit", "8bit"] | None = None,
    device_map: DeviceMap | None = None,
    attention: str | None = None,
    local_files_only: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, frozen and in evaluation mode, and its tokenizer, which pads with EOS if need be.

    A folder is read without any network access, a GGUF file as the folder that `hyperlora.gguf` makes of it; anything
    else is a Hub id, which `local_files_only` looks up in this machine's cache alone. Only safetensors are read and no
    remote code is run. Each tensor goes from the file straight to where it stays, so that no weights are held twice. On
    the CPU, in the dtype of the file, it stays in the file, from which the system reads what is used: replace a file
    that is in use by another (a download does), since one that is overwritten changes the model, and one that is cut
    short ends the process with SIGBUS.

    `dtype`: float32, bfloat16 or float16, or its name. `device`: cpu, cuda, cuda:1, mps, or auto for the best of them.
    `quantize`: the layers' linears in 4 (NF4, double quantization) or 8 bits, all else in `dtype`. `device_map` stands
    instead of `device`: "auto", or module name -> device, of which cpu (beside a GPU) and disk are offloaded: those
    weights are brought in for each forward. `attention`: eager, sdpa or flash_attention_2; None is the best that the
    model has without another package.

    Raises `UserError` for an option that is not known or not possible here, and where the model is missing, damaged, or
    larger than the memory.
    """
    if (wanted := DTYPES.get(str(dtype).removeprefix("torch."))) is None:
        raise UserError(f"The dtype {str(dtype)!r} is not known; use {', '.join(DTYPES)}.")
    device_map = _placement(device, device_map)
    options = {"device_map": device_map} if device_map != {"": torch.device("cpu")} else {}
    if quantize is not None:
        options |= {"device_map": device_map, "quantization_config": _quantization(quantize, wanted, device_map)}
    _check_attention(attention, wanted, device_map)
    given = Path(path_or_id).expanduser()
    folder = model_folder(path_or_id, revision, local_files_only)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder / 'config.json'} is missing: {folder} holds no base model.")
    check_no_adapter(folder)
    _check_text_only(folder)
    try:
        # One load alone: the library only logs weights that the file lacks, and starts them at random.
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=wanted,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            attn_implementation=attention,  # also where it is None: a config.json may not choose it
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if isinstance(tokenizer.chat_template, dict) and "default" in tokenizer.chat_template:
            tokenizer.chat_template = tokenizer.chat_template["default"]  # as transformers chooses
        if tokenizer.pad_token is None:  # as Mistral's and Llama's; padding is masked, or right of all
            tokenizer.pad_token = tokenizer.eos_token
    except Exception as error:
        reason = first_line(error)
        if out_of_memory(error):
            raise UserError(
                f"The base model in {folder} does not fit into the memory ({reason}): use fewer bits "
                '(dtype="bfloat16", quantize="4bit"), a device_map that offloads, or a smaller model.'
            ) from error
        if "device_map" in reason:
            raise UserError(f"The device_map does not fit the base model in {folder} ({reason}).") from error
        raise UserError(f"The base model in {folder} is damaged or incomplete ({reason}).") from error
    if wrong := sorted(report["missing_keys"]) or sorted(str(key) for key in report["mismatched_keys"]):
        raise UserError(f"The base model in {folder} does not fit its config.json: {wrong[0]} is missing or misshapen.")
    if not given.is_dir():  # what others can load too, not where this machine's cache has it
        model.name_or_path = model.config.name_or_path = str(path_or_id)
    if not given.exists():
        model.config._commit_hash = folder.name
    if hub_name := getattr(model.config, "hub_name", None):  # of a GGUF file whose content is known
        model.name_or_path = model.config.name_or_path = hub_name
    return model.eval().requires_grad_(False), tokenizer


def model_folder(path_or_id: str | Path, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder that `load_base` reads: of a GGUF file the converted one, of a Hub id the one in the cache."""
    given = Path(path_or_id).expanduser()
    return converted(given) if given.is_file() else resolve_folder(path_or_id, revision, PATTERNS, local_files_only)


def origin(model: PreTrainedModel) -> tuple[str | None, str | None]:
    """The folder or Hub id that a base is from, and the commit of the latter: what an adapter says of its base."""
    return model.config.name_or_path or None, getattr(model.config, "_commit_hash", None)


def check_no_adapter(folder: Path) -> None:
    """`UserError` where an adapter lies in a model's folder: with PEFT installed, transformers loads both as one."""
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder} holds an adapter too (adapter_config.json), so that it is unclear what is meant: give a folder "
            "that holds the model alone, and load the adapter by itself."
        )


def _check_text_only(folder: Path) -> None:
    """`UserError` for a model with more than a text model inside, whose layers would be named twice."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} is damaged: it should be an object.")
    if more := [kind for kind in ("vision", "audio") if config.get(f"{kind}_config")]:
        raise UserError(
            f"The base model in {folder} has a {more[0]} part; only text models can be adapted: take its text-only "
            "version, such as google/gemma-3-1b-it of Gemma 3."
        )


def find_device(device: str) -> torch.device:
    """The device of that name; "auto" is that of `device_named`. `UserError` where there is none."""
    if device == "auto":
        device = device_named("auto").name
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
    else:
        if found.type != "meta":
            return found
        reason = "it holds no values"
    raise UserError(f"The device {device!r} cannot be used here ({reason}); use cpu, or auto.")


def device_of(module: torch.nn.Module) -> torch.device:
    """Where a linear or an embedding computes.

    That is where its weight is, but offloaded weights wait on `meta` between two calls: then accelerate's hook knows.
    """
    hook = getattr(module, "_hf_hook", None)
    if module.weight.device.type == "meta":
        for part in getattr(hook, "hooks", [hook]):
            if (device := getattr(part, "execution_device", None)) is not None:
                return torch.device(device)
    return module.weight.device


def _placement(device: str, device_map: DeviceMap | None) -> DeviceMap:
    """The device map that says where every module goes; `UserError` for a device that is not there."""
    if device_map is None:
        return {"": find_device(device)}
    if isinstance(device_map, str):
        if device_map not in AUTOMATIC:
            raise UserError(
                f"The device_map {device_map!r} is not known; use {', '.join(AUTOMATIC)}, a dict of module names and "
                "devices, or the option device."
            )
        return device_map
    if not isinstance(device_map, Mapping) or not device_map:
        raise UserError(
            'A device_map is "auto" or a dict such as {"model.embed_tokens": "cpu", "model.layers": "disk"}.'
        )
    # A number is a GPU's; accelerate tells cpu and disk by their names.
    return {
        name: place
        if place in ("cpu", "disk")
        else find_device(f"cuda:{place}" if isinstance(place, int) else str(place))
        for name, place in device_map.items()
    }


def _quantization(quantize: str, dtype: torch.dtype, device_map: DeviceMap) -> BitsAndBytesConfig:
    """bitsandbytes' settings; `UserError` where it is not installed or cannot do it."""
    if quantize not in ("4bit", "8bit"):
        raise UserError(f"quantize is {quantize!r}, but must be 4bit, 8bit or None.")
    if dtype == torch.float32:
        raise UserError(f"A base model in {quantize} computes in bfloat16 or float16: ask for one of them as dtype.")
    if not is_bitsandbytes_available():
        raise UserError(f"A base model in {quantize} needs a package that is not here: pip install bitsandbytes.")
    import bitsandbytes

    # in 8 bits it says for every linear and token that it casts bfloat16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    places = [] if isinstance(device_map, str) else list(device_map.values())
    if "disk" in places or ("cpu" in places and set(places) != {"cpu"}):
        raise UserError(
            f"A base model in {quantize} cannot be offloaded: give each module of the device_map a GPU, or leave "
            "quantize out."
        )
    kinds = {torch.device(place).type for place in places}
    if unsupported := sorted(kinds - set(bitsandbytes.supported_torch_devices)):
        raise UserError(f"bitsandbytes does not support {unsupported[0]} here: leave quantize out, or use a CUDA GPU.")
    return BitsAndBytesConfig(
        load_in_4bit=quantize == "4bit",
        load_in_8bit=quantize == "8bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _check_attention(attention: str | None, dtype: torch.dtype, device_map: DeviceMap) -> None:
    """`UserError` for an attention that is not known, or FlashAttention where it cannot run.

    Asked here, not of transformers, which would fetch compiled code from the Hub where the package is missing.
    """
    if attention is not None and attention not in ATTENTION:
        raise UserError(f"The attention {attention!r} is not known; use {', '.join(ATTENTION)}.")
    if attention != "flash_attention_2":
        return
    if not isinstance(device_map, str) and any(getattr(place, "type", "") != "cuda" for place in device_map.values()):
        raise UserError("flash_attention_2 runs on CUDA GPUs only: leave attention out, or use sdpa.")
    if dtype == torch.float32:
        raise UserError("flash_attention_2 computes in bfloat16 or float16: ask for one of them as dtype.")
    if not is_flash_attn_2_available():
        raise UserError("flash_attention_2 needs a package that is not here: pip install flash-attn, or use sdpa.")


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on the CPU, PyTorch says so with a RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def context_length(model: PreTrainedModel) -> int:
    """The most tokens, prompt and answer together, that the model was made for."""
    return model.config.get_text_config().max_position_embeddings


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: all that the generation config, the config, the tokenizer and its chat template
    name, since published models often name only some of them in each."""
    named = [model.generation_config.eos_token_id, getattr(model.config, "eos_token_id", None)]
    named += [tokenizer.eos_token_id, turn_end(tokenizer)]
    each = (eos if isinstance(eos, (list, tuple)) else [eos] for eos in named)
    return {token for tokens in each for token in tokens if isinstance(token, int)}
