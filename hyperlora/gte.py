"""Alibaba-NLP's gte-*-en-v1.5 sentence encoders in transformers' own GteModel: none of their remote code is run."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GteConfig, GteModel

from hyperlora.base import check_no_adapter, find_device
from hyperlora.config import read_json
from hyperlora.errors import UserError, first_line, shown
from hyperlora.files import open_safetensors, own_memory, resolve_folder
from hyperlora.quiet import quietly

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
MAX_TOKENIZER = 64 * 2**20  # bytes
MAX_LAYERS = 1_000
MAX_TOKENS = 8_192  # that the public release of text-to-lora reads of a text
# What the public code can do otherwise, and GteModel cannot.
ONLY = {"position_embedding_type": "rope", "layer_norm_type": "layer_norm"}
ONLY |= {"logn_attention_scale": False, "pack_qkv": True}
SAME = (  # what both configurations call by one name
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("max_position_embeddings", "type_vocab_size", "layer_norm_eps"),
)


def load_gte(
    path_or_id: str | Path, revision: str | None = None, device: str = "cpu", local_files_only: bool = False
) -> tuple[GteModel, Tokenizer]:
    """A gte encoder in the published form, float32, frozen and in evaluation mode, and its tokenizer.

    The embedding of a text is the last layer's first token (CLS). A folder is read without any network access; anything
    else is a Hub id. Every tensor's name and shape is checked against config.json before it is read. Raises `UserError`
    for what is missing, damaged, or more than GteModel can represent.
    """
    folder = resolve_folder(path_or_id, revision, [CONFIG, WEIGHTS, TOKENIZER], local_files_only)
    check_no_adapter(folder)
    config = gte_config(read_json(folder / CONFIG))
    with open_safetensors(folder / WEIGHTS) as file:  # shapes without memory
        shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    # Given the class and the config, transformers renames and splits the weights itself. What config.json says may be
    # larger than any memory: so first without any.
    _load(None, config, folder, state_dict=shapes, device_map="meta")
    tokenizer = _load_tokenizer(folder / TOKENIZER, config)
    model = _load(folder, config, folder, use_safetensors=True, local_files_only=True)
    own_memory(model)
    return model.to(find_device(device)).eval().requires_grad_(False), tokenizer


@quietly()
def _load(source: Path | None, config: GteConfig, folder: Path, **options: Any) -> GteModel:
    try:
        model, report = GteModel.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **options,
        )
    except Exception as error:
        raise UserError(f"The sentence encoder in {folder} could not be loaded ({first_line(error)}).") from error
    wrong = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    wrong += [f"{name} is too many" for name in sorted(report["unexpected_keys"])]
    wrong += [f"{name} is {list(found)}, not {list(size)}" for name, found, size in sorted(report["mismatched_keys"])]
    if wrong:
        raise UserError(f"{folder / WEIGHTS} does not fit {CONFIG}: {wrong[0]} ({len(wrong)} such tensors).")
    return model


def gte_config(published: Any) -> GteConfig:
    """The values of a published config.json (type `new`, or transformers' own `gte`) as a GteConfig.

    Raises `UserError` for what GteModel does not compute as the public code does.
    """
    kind = published.get("model_type") if isinstance(published, dict) else None
    if kind not in ("new", "gte"):
        raise UserError(f"This {CONFIG} is of the type {kind!r}, not of a gte-*-en-v1.5 sentence encoder.")
    try:
        config = GteConfig.from_dict(published) if kind == "gte" else _translate(published)
        width, heads = config.hidden_size, config.num_attention_heads
        fits = 0 < config.num_hidden_layers <= MAX_LAYERS and heads > 0 and width > 0 and width % (2 * heads) == 0
    except UserError:
        raise
    except Exception as error:  # a value of another kind, in whatever way it shows
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The {CONFIG} of this sentence encoder is damaged ({reason}).") from error
    if not fits:
        raise UserError(f"The {CONFIG} of this sentence encoder is damaged: its sizes do not fit each other.")
    return config


def _translate(published: dict[str, Any]) -> GteConfig:
    for name, value in ONLY.items():
        found = published.get(name, value)
        if type(found) is not type(value) or found != value:  # 1 == True
            raise UserError(f"This sentence encoder has {name} {shown(found)}; only {value!r} can be loaded.")
    if missing := [name for name in (*SAME, "rope_theta") if name not in published]:
        raise UserError(f"The {CONFIG} of this sentence encoder lacks {missing[0]}: get it again.")
    return GteConfig(
        **{name: published[name] for name in SAME},
        pad_token_id=published.get("pad_token_id"),
        rope_parameters=_rope(published),
    )


def _rope(published: dict[str, Any]) -> dict[str, Any]:
    """The public code's rotary frequencies as `rope_parameters`.

    Its `ntk` scaling by s > 1, at a head of d values, has the frequencies (theta s)^(-2i/d) / s^(2/d). They hold for
    texts of any length: the code asks whether the table of cosines is longer than max_position_embeddings, and the one
    made at load is, by s. That is transformers' `linear` scaling by s^(2/d) with the theta theta s.
    """
    theta, scaling = published["rope_theta"], published.get("rope_scaling")
    if type(theta) not in (int, float) or not 0 < theta < float("inf"):
        raise UserError(f"This sentence encoder has the rope_theta {shown(theta)}; it must be a number above 0.")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": float(theta)}
    kind, factor = scaling.get("type"), scaling.get("factor")
    if kind != "ntk" or any(value is not None for name, value in scaling.items() if name not in ("type", "factor")):
        raise UserError(f"This sentence encoder has rope_scaling {scaling!r}; only plain 'ntk' can be loaded.")
    if type(factor) not in (int, float) or not 1 <= factor < float("inf"):
        raise UserError(
            f"This sentence encoder has the rope_scaling factor {shown(factor)}; it must be a number from 1 up."
        )
    head_size = published["hidden_size"] // published["num_attention_heads"]
    return {"rope_type": "linear", "rope_theta": float(theta) * factor, "factor": float(factor) ** (2 / head_size)}


def _load_tokenizer(path: Path, config: GteConfig) -> Tokenizer:
    read_json(path, MAX_TOKENIZER)  # its sentences for a file that is missing, too large or no JSON
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise UserError(f"{path} is damaged ({error}).") from error
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"{path} has {tokenizer.get_vocab_size():,} tokens, but the sentence encoder has only "
            f"{config.vocab_size:,}: the two are of different models."
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()  # the embedder reads a long text in parts
    return tokenizer
