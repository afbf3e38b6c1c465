"""Adapters and models as llama.cpp reads them, and Ollama with it: GGUF, by the names and conventions of its
convert_lora_to_gguf.py and convert_hf_to_gguf.py."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType, get_tensor_name_map
from gguf.gguf_writer import GGUFValue
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hyperlora.errors import UserError
from hyperlora.gguf import ARCHITECTURES, END_TOKENS, Header, config_of
from hyperlora.lora import Adapter, path_in_layer
from hyperlora.prompt import own_template

NAMES = {model_type: name for name, model_type in ARCHITECTURES.items()} | {"mistral": "llama"}
KINDS = {
    "float32": (torch.float32, GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (torch.float16, GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (torch.bfloat16, GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}
# What a header has to say of a model, so that llama.cpp computes what transformers does.
SAID = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SAID += ("rms_norm_eps", "tie_word_embeddings", "rope_parameters", "hidden_act", "hidden_activation", "layer_types")
SAID += ("attention_bias", "mlp_bias", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of tokens
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + WORDS
# How a byte-level tokenizer cuts a text into words -> llama.cpp's name for it.
CUTS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (WORDS % r"\p{N}{1,3}",): "llama-bpe",
    (WORDS % r"\p{N}",): "qwen2",
}


class _Writer(GGUFWriter):
    """Takes lists of no texts too, such as the merges of a tokenizer that reads character by character."""

    def _pack_val(self, val: Any, vtype: GGUFValueType, *arguments: Any, **options: Any) -> bytes:
        if vtype == GGUFValueType.ARRAY and not len(val):
            return self._pack("I", vtype) + self._pack("I", GGUFValueType.STRING) + self._pack("Q", 0)
        return super()._pack_val(val, vtype, *arguments, **options)


def architecture(config: PreTrainedConfig) -> str:
    """llama.cpp's name of a model's architecture; `UserError` for one that is not written here."""
    if config.model_type not in NAMES:
        raise UserError(
            f"The base model is of the type {config.model_type}, which is not written as GGUF here; "
            f"{', '.join(NAMES)} are: take the PEFT folder, or the merged model as safetensors."
        )
    return NAMES[config.model_type]


def tensor_namer(config: PreTrainedConfig) -> Callable[[str], str]:
    """Gives the name of a tensor of transformers' model as GGUF has it."""
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture(config))
    names = get_tensor_name_map(kind, config.num_hidden_layers)

    def name_of(name: str) -> str:
        stem, _, suffix = name.rpartition(".")
        if (found := names.get_name(stem)) is None:
            raise UserError(f"The base model holds {name[:80]}, for which GGUF has no name here: take another form.")
        return f"{found}.{suffix}"

    return name_of


def as_written(config: PreTrainedConfig, name: str, values: Tensor) -> Tensor:
    """A tensor of transformers' model as GGUF has it: [d_out, ...], of "llama" the two halves of each head of q and k
    interleaved; of Gemma the norms with the 1 that the model adds."""
    stem = name.rpartition(".")[0]
    if architecture(config) == "llama" and (part := stem.rpartition(".")[2]) in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
        return values.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    if architecture(config).startswith("gemma") and stem.endswith("norm"):
        return values + 1
    return values


# ---- an adapter ----


def write_adapter(adapter: Adapter, config: PreTrainedConfig, path: Path) -> None:
    """The adapter in float32: lora_a [r, d_in] and lora_b [d_out, r] of each linear.

    llama.cpp scales by alpha / r, so that alpha holds rsLoRA's scale and the strength; the sign of it is in B. An alpha
    of 0 would count as a scale of 1: an adapter of no strength has a B of zeros.
    """
    kind, name_of, scale = architecture(config), tensor_namer(config), adapter.scale
    sign = math.copysign(1.0, scale) if scale else 0.0
    alpha = abs(scale) * adapter.rank or 1.0
    tensors: dict[str, Tensor] = {}
    for module, (A, B) in adapter.weights.items():
        for layer in range(adapter.num_layers):
            name = f"model.layers.{layer}.{path_in_layer(module)}.weight"
            tensors[f"{name_of(name)}.lora_a"] = A[layer]
            tensors[f"{name_of(name)}.lora_b"] = as_written(config, name, B[layer] * sign)
    with _open(path, kind) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        writer.add_string("general.description", adapter.description or "")
        writer.add_file_type(LlamaFileType.ALL_F32)
        for name, values in tensors.items():
            writer.add_tensor(name, values.detach().float().cpu().contiguous().numpy())
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


@contextmanager
def _open(path: Path, kind: str) -> Iterator[GGUFWriter]:
    writer = _Writer(path, kind)
    try:
        yield writer
    finally:
        writer.close()


# ---- a model ----


@dataclass(frozen=True)
class Part:
    """A tensor of a model that is to be written: `read` gives it as GGUF has it, in float32."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def bytes(self, dtype: str) -> int:
        """Its size; what is no matrix stays in float32."""
        return math.prod(self.shape) * (4 if len(self.shape) < 2 else KINDS[dtype][0].itemsize)


def write_model(
    path: Path,
    kind: str,
    fields: Mapping[str, GGUFValue],
    parts: Mapping[str, Part],
    dtype: str,
    report: Callable[[float], None],
) -> None:
    """A model as one file, a tensor in memory at a time; `report` hears of the bytes of tensors that are written.

    Raises `UserError` for values that the dtype has no number for.
    """
    torch_dtype, matrix, file_type = KINDS[dtype]
    with _open(path, kind) as writer:
        for name, field in fields.items():
            writer.add_key_value(name, field.value, field.type, field.sub_type)
        writer.add_file_type(file_type)
        for name, part in parts.items():
            wanted = matrix if len(part.shape) > 1 else GGMLQuantizationType.F32
            writer.add_tensor_info(name, part.shape, torch.zeros(0).numpy().dtype, part.bytes(dtype), wanted)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done = 0
        for name, part in parts.items():
            report(float(done))
            values = part.read().to(torch_dtype if len(part.shape) > 1 else torch.float32).contiguous()
            if not values.isfinite().all():
                raise UserError(f"{name} does not fit into {dtype}: choose bfloat16 or float32 for the merged model.")
            if values.dtype == torch.bfloat16:  # which NumPy has not
                values = values.view(torch.int16)
            writer.write_tensor_data(values.numpy())
            done += part.bytes(dtype)
        report(float(done))


def describe_model(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, ends: set[int], parts: dict[str, Part]
) -> dict[str, GGUFValue]:
    """The header of a model that is in transformers' format: its settings, its tokenizer, its chat template.

    Where Llama 3.1's positions need it, `parts` gets a tensor more. Raises `UserError` for what a header cannot say.
    """
    kind, head_dim = architecture(config), getattr(config, "head_dim", None)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    window = getattr(config, "sliding_window", None)
    context = config.max_position_embeddings
    if kind == "llama" and window:  # which llama.cpp has not: up to there both are the same
        context = min(context, window)
    settings: dict[str, int | float | str | bool] = {
        "block_count": config.num_hidden_layers,
        "context_length": context,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if kind in ("gemma2", "gemma3", "phi3"):
        settings["attention.sliding_window"] = window or 0
    if kind == "gemma2":
        settings["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        settings["final_logit_softcapping"] = float(config.final_logit_softcapping)
    if kind == "gemma3":
        settings["rope.freq_base_swa"] = float(config.rope_parameters["sliding_attention"]["rope_theta"])
    if (way := rope["rope_type"]) == "linear":
        settings |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    elif way == "llama3":
        slow, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        fast = rope["rope_theta"] ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        parts["rope_freqs.weight"] = Part((head_dim // 2,), lambda: fast / slow)
    elif way != "default":
        settings["rope.scaling.type"] = way
    fields = {"general.type": "model"} | {f"{kind}.{name}": value for name, value in settings.items()}
    fields |= _tokenizer_fields(tokenizer, config.vocab_size)
    first = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else None
    named = ([first] if first is not None else []) + sorted(ends - {first})
    ids = dict(zip(END_TOKENS, named, strict=False)) | {"bos": tokenizer.bos_token_id}
    ids |= {"unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
    fields |= {f"tokenizer.ggml.{name}_token_id": token for name, token in ids.items() if token is not None}
    if (template := own_template(tokenizer)) is not None:
        fields["tokenizer.chat_template"] = template
    _check_said(config, kind, fields, parts)
    return {name: GGUFValue(value, _type(value)) for name, value in fields.items()}


def _type(value: Any) -> GGUFValueType:
    if isinstance(value, bool | str | list):
        return GGUFValueType.get_type(value)
    return GGUFValueType.FLOAT32 if isinstance(value, float) else GGUFValueType.UINT32


def _check_said(config: PreTrainedConfig, kind: str, fields: dict[str, Any], parts: Mapping[str, Part]) -> None:
    """`UserError` where the model that is read from such a header would be another."""
    tensors = {
        name: SimpleNamespace(shape=part.shape, read=lambda path, part=part: part.read().numpy())
        for name, part in parts.items()
    }
    path = Path("The base model's GGUF file")
    read = AutoConfig.for_model(**config_of(path, Header(fields | {"general.architecture": kind}, tensors)))
    names = SAID + (("sliding_window",) if kind in ("gemma2", "gemma3", "phi3") else ())
    for name in names:
        if (getattr(config, name, None) or None) != (getattr(read, name, None) or None):
            raise UserError(
                f"llama.cpp has no way to say this base model's {name}: take the merged model as safetensors."
            )


# ---- a tokenizer ----


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer begins a text with BOS by itself."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def _tokenizer_fields(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, Any]:
    """The keys of a tokenizer for a table of so many rows; `UserError` for one that llama.cpp does not have."""
    content = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    model, vocabulary = content.get("model") or {}, tokenizer.get_vocab()
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model.get("merges", [])]
    if model.get("type") != "BPE" or max(vocabulary.values()) >= rows:
        raise UserError("The base model's tokenizer is of a kind that is not written as GGUF here: take another form.")
    tokens = [f"[PAD{i}]" for i in range(rows)]
    kinds = [UNUSED] * rows
    for token, i in vocabulary.items():
        tokens[i], kinds[i] = token, NORMAL
    for i, token in tokenizer.added_tokens_decoder.items():
        tokens[i], kinds[i] = token.content, CONTROL if token.special else USER_DEFINED
    fields: dict[str, Any] = {"tokenizer.ggml.add_bos_token": adds_bos(tokenizer)}
    if model.get("byte_fallback"):
        for i, token in enumerate(tokens):
            if kinds[i] == NORMAL and len(token) == 6 and token.startswith("<0x"):
                kinds[i] = BYTE
        if model.get("unk_token") in vocabulary:
            kinds[vocabulary[model["unk_token"]]] = UNKNOWN
        # SentencePiece merges what has the highest score: that of the first merge that makes it.
        ranks: dict[str, int] = {}
        for rank, pair in enumerate(merges):
            ranks.setdefault("".join(pair), rank)
        fields |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": [-float(ranks.get(token, len(ranks))) for token in tokens],
            "tokenizer.ggml.add_space_prefix": _prefixes_space(content),
        }
    else:
        cut = _cut(content.get("pre_tokenizer"))
        texts = [i for i, kind in enumerate(kinds) if kind == NORMAL]
        if cut is None and not merges and all(len(tokens[i]) == 1 and tokens[i].isascii() for i in texts):
            cut = ("ByteLevel",)  # a token a character, wherever it is cut
            for i in texts:
                tokens[i] = tokens[i].replace(" ", "Ġ")
        if cut not in CUTS:
            raise UserError(
                "The base model's tokenizer cuts texts in a way that has no name in GGUF here: take another form."
            )
        fields |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": CUTS[cut],
            "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
            "tokenizer.ggml.add_space_prefix": False,
        }
    return fields | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}


def _prefixes_space(content: dict[str, Any]) -> bool:
    """Whether a tokenizer in SentencePiece's way puts a space before a text."""
    return any(step.get("type") == "Prepend" for step in _steps(content.get("normalizer"), "normalizers")) or any(
        step.get("prepend_scheme", "never") != "never" for step in _steps(content.get("pre_tokenizer"), "pretokenizers")
    )


def _cut(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...] | None:
    """The steps of a byte-level tokenizer before its merges, as in CUTS; None where it is none."""
    cut = []
    steps = _steps(pre_tokenizer, "pretokenizers")
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    for step in steps:
        if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            cut.append(str(step["pattern"].get("Regex")))
        elif step["type"] == "ByteLevel" and not step.get("use_regex", True):
            continue
        elif step["type"] != "Digits" or step["individual_digits"]:
            cut.append(step["type"])
        else:
            return None
    return tuple(cut)


def _steps(step: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    if not step:
        return []
    return step[inside] if step["type"] == "Sequence" else [step]
