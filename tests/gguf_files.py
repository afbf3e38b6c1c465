"""Small GGUF files as llama.cpp's converter writes them, of random models with a tokenizer of real pieces."""

import json
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.conftest import TINY

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<|eom|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = ["The capital of France is Paris.", "one two three four", "What is the plural of the word window?"] * 5


@lru_cache
def byte_level() -> Tokenizer:
    """A BPE over bytes, in GPT-2's way, of some 300 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


# Rows that blocks of 32 fit into, and a row for each token.
SIZES = TINY | {"vocab_size": byte_level().get_vocab_size(), "hidden_size": 64, "intermediate_size": 96}
SIZES |= {"max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    architecture: str = "llama",
    quantization: str = "F32",
    template: str | None = TEMPLATE,
    skip: tuple[str, ...] = (),
    more: dict[str, np.ndarray] = MappingProxyType({}),
    **fields: int | float | str,
) -> Path:
    """The model as a GGUF file, its matrices in that quantisation. `fields` are more settings, with __ for a dot, or
    other values; `skip` names settings and tensors that are left out, `more` are tensors beside the model's."""
    config, writer = model.config, GGUFWriter(path, architecture)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    settings = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": rope["rope_theta"],
    }
    if architecture.startswith("gemma"):
        settings["attention.sliding_window"] = config.sliding_window
    settings = {f"{architecture}.{name}": value for name, value in settings.items()}
    ids = {f"tokenizer.ggml.{name}_token_id": i for name, i in {"bos": 1, "eos": 2, "padding": 2}.items()}
    settings |= ids | {name.replace("__", "."): value for name, value in fields.items()}
    for name, value in settings.items():
        if name in skip:
            continue
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)
    if "tokenizer" not in skip:
        vocabulary = byte_level().get_vocab()
        merges = json.loads(byte_level().to_str())["model"]["merges"]
        writer.add_tokenizer_model("gpt2")
        if "tokenizer.ggml.pre" not in settings:
            writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
        writer.add_token_types([3 if i < len(SPECIAL) else 1 for i in range(len(vocabulary))])
        writer.add_token_merges([" ".join(pair) for pair in merges])
    if template is not None:
        writer.add_chat_template(template)
    [kind] = [kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture]
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        values = weight.detach().float().numpy()
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            # LlamaModel.permute of convert_hf_to_gguf.py
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and stem.endswith("norm"):
            values = values + 1
        if (target := f"{names.get_name(stem)}.{suffix}") in skip:
            continue
        type_ = GGMLQuantizationType[quantization if values.ndim > 1 else "F32"]
        writer.add_tensor(target, quantize(np.ascontiguousarray(values), type_), raw_dtype=type_)
    for name, values in more.items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_folder(path: Path, model: PreTrainedModel, template: str | None = TEMPLATE) -> Path:
    """The same model as transformers keeps it, with the same tokenizer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[2]
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    model.generation_config.eos_token_id = [2]
    model.save_pretrained(path)
    return path
