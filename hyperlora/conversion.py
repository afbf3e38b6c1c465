"""GGUF files as folders that `load_base` reads: dequantised, with their tokenizer, kept in the user's cache."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from hyperlora import smollm2
from hyperlora.errors import UserError, first_line
from hyperlora.files import locked, safetensors_bytes, sha256_of, write_atomic, writing
from hyperlora.gguf import Header, config_of, kept, read_header
from hyperlora.prompt import apply_template, own_template
from hyperlora.quiet import quietly

SHARD = 10**9  # bytes of weights that are in memory at a time
LARGE = 1e9  # weights from which the folder is in bfloat16, in which such models run


@quietly()
def converted(path: str | Path) -> Path:
    """The model of a GGUF file as a folder in the user's cache: safetensors, dequantised; made once for each content.

    Weights are in float32, from 1e9 of them on in bfloat16. The same file gives the same bytes. Raises `UserError` as
    `read_header` does, and where the file does not fit its own header, its chat template fails, or the folder cannot be
    written.
    """
    path = Path(path).expanduser()
    header = read_header(path)
    config = config_of(path, header)
    sha256 = sha256_of(path)
    folder = kept(sha256)
    if folder.is_dir():
        return folder
    with locked(folder), writing(folder, "free some space, or set HF_HOME to a folder that can be written"):
        if not folder.is_dir():
            part = folder.with_name(f".{folder.name}.part")  # of one that was ended, if it is there
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                if sha256 == smollm2.SHA256:
                    config["hub_name"] = smollm2.NAME
                _convert(path, header, config, part)
                os.replace(part, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def _convert(path: Path, header: Header, config: dict[str, Any], folder: Path) -> None:
    """Write the model, its tokenizer and its settings into the folder."""
    try:
        settings = AutoConfig.for_model(**config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings)
        tokenizer = _tokenizer(path, header, folder)
    except Exception as error:  # a header says what it likes
        raise UserError(f"{path} is damaged, or not as transformers reads it ({first_line(error)}).") from error
    _check_template(path, tokenizer)
    settings.architectures = [type(model).__name__]
    settings.dtype = torch.float32 if header.weights < LARGE else torch.bfloat16
    _write_weights(path, header, settings, model.to(settings.dtype).state_dict(), folder)
    settings.save_pretrained(folder)
    ends = {name: getattr(settings, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ends).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_weights(
    path: Path, header: Header, settings: PreTrainedConfig, state: dict[str, torch.Tensor], folder: Path
) -> None:
    """The model's tensors, named and laid out as in `state`, into shards, of which one is in memory at a time."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    [kind] = [kind for kind, name in MODEL_ARCH_NAMES.items() if name == header.architecture]
    names = get_tensor_name_map(kind, settings.num_hidden_layers)
    state = {
        name: empty for name, empty in state.items() if name != "lm_head.weight" or not settings.tie_word_embeddings
    }

    def read(name: str) -> torch.Tensor:
        stem, _, suffix = name.rpartition(".")
        tensor = header.tensors.get(f"{names.get_name(stem)}.{suffix}")
        if tensor is None or tensor.shape != tuple(state[name].shape):
            raise UserError(f"{path} does not fit its own header: {name} is missing or misshapen.")
        values = torch.from_numpy(tensor.read(path))
        if header.architecture == "llama" and (part := stem.rpartition(".")[2]) in ("q_proj", "k_proj"):
            # Its two halves of a head are interleaved there.
            heads = settings.num_attention_heads if part == "q_proj" else settings.num_key_value_heads
            values = values.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        elif header.architecture.startswith("gemma") and stem.endswith("norm"):
            values = values - 1  # which the model adds
        return values.to(settings.dtype)

    shards = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD
    )
    for file, inside in shards.filename_to_tensors.items():
        write_atomic(folder / file, safetensors_bytes({name: read(name) for name in inside}))
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": dict(sorted(shards.tensor_to_filename.items()))}
        write_atomic(folder / "model.safetensors.index.json", json.dumps(index, indent=2).encode())


def _tokenizer(path: Path, header: Header, folder: Path) -> PreTrainedTokenizerBase:
    alone = folder / "alone"  # beside the file may lie another tokenizer's settings
    alone.mkdir()
    try:
        _link(path.resolve(), alone / "model.gguf")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(alone, gguf_file="model.gguf", local_files_only=True)
    finally:
        shutil.rmtree(alone)
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    if header.fields.get("tokenizer.ggml.pre") == "smollm":  # digits one by one, which transformers leaves out
        digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    return tokenizer


def _check_template(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """`UserError` for a chat template that fails; a file may have none."""
    if own_template(tokenizer) is not None:
        try:
            apply_template(tokenizer, [{"role": "user", "content": "Hello."}])
        except Exception as error:  # whatever is in it
            raise UserError(f"The chat template in {path} fails ({first_line(error)}): take another file.") from error


def _link(file: Path, name: Path) -> None:
    """The file under another name; a copy where the system has no links."""
    try:
        name.symlink_to(file)
    except OSError:
        shutil.copyfile(file, name)
