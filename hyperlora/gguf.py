"""What a GGUF file is as a base model: its header, its tensors, and the config.json that they amount to.

The header is read here and not by the package gguf, which reads arrays of any length that a file claims, in seconds.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hyperlora.config import MAX_LAYERS
from hyperlora.errors import UserError, first_line
from hyperlora.files import cache_folder
from hyperlora.memory import BaseShape

FORMAT = 1  # of the folder: another number converts again
# A file that claims more is none that anybody uses: the largest vocabularies take 20 MB.
MAX_HEADER, MAX_KEYS, MAX_TENSORS, MAX_DIMENSIONS, MAX_KEPT = 2**26, 2**14, 2**17, 4, 1024
ARCHITECTURES = {  # llama's are Mistral's too
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY, FLOAT = 8, 9, 6
END_TOKENS = ("eos", "eot", "eom")  # transformers reads the first
WHOLE = "get the file again from where it came"


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its tensors. Of a long array `fields` holds the length alone."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, "Tensor"]

    @property
    def architecture(self) -> str:
        return self.fields["general.architecture"]

    @property
    def weights(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


class Tensor(NamedTuple):
    """Where a tensor lies in the file. `shape`: in the order of PyTorch; `kind`: the number of the ggml type."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int

    def read(self, path: Path) -> np.ndarray:
        """Its values, dequantised to float32."""
        from gguf import GGMLQuantizationType, dequantize

        data = np.fromfile(path, np.uint8, self.size, offset=self.start).reshape(*self.shape[:-1], -1)
        return dequantize(data, GGMLQuantizationType(self.kind))


class _Reader:
    """Reads numbers and texts one after the other, and nothing behind MAX_HEADER."""

    def __init__(self, data: mmap.mmap):
        self.data, self.place, self.end = data, 0, min(len(data), MAX_HEADER)

    def skip(self, size: int) -> int:
        """The place before a step of that many bytes."""
        before = self.place
        if size > self.end - before:
            raise EOFError
        self.place += size
        return before

    def numbers(self, kind: str, count: int = 1) -> tuple:
        form = f"<{count}{kind}"
        size = count * struct.calcsize(f"<{kind}")  # before a form of any length is read
        return struct.unpack_from(form, self.data, self.skip(size))

    def number(self, kind: str = "Q") -> int:
        return self.numbers(kind)[0]

    def text(self) -> str:
        size = self.number()
        before = self.skip(size)
        return self.data[before : before + size].decode()

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            value = self.number(NUMBERS[kind])
            return float(f"{value:.7g}") if kind == FLOAT else value  # 1e-05, not 9.999999747378752e-06
        kind, count = self.number("I"), self.number()
        if kind != TEXT and count <= MAX_KEPT:
            return list(self.numbers(NUMBERS[kind], count))
        if kind != TEXT:
            self.skip(count * struct.calcsize(f"<{NUMBERS[kind]}"))
        elif 8 * count > self.end - self.place:
            raise EOFError
        else:
            for _ in range(count):
                self.skip(self.number())
        return count


def read_header(path: str | Path) -> Header:
    """Everything but the tensors, in a fraction of a second and bounded memory, whatever the file claims.

    Raises `UserError` where it is no GGUF file, is cut off or damaged, or holds what is not read: an architecture, a
    quantisation.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"{path} is no GGUF file: give one, a folder with a model, or a Hub id.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_header(path, data)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check that it may be read.") from error
    except EOFError as error:
        raise UserError(f"{path} is cut off or damaged: {WHOLE}.") from error
    except (KeyError, ValueError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged ({first_line(error)} in its header): {WHOLE}.") from error


def _read_header(path: Path, data: mmap.mmap) -> Header:
    reader = _Reader(data)
    reader.skip(4)
    if (version := reader.number("I")) not in (2, 3):
        raise UserError(f"{path} is of version {version} of GGUF, and 2 and 3 are read: take a newer file.")
    tensor_count, key_count = reader.numbers("Q", 2)
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise UserError(f"{path} is damaged (it claims {tensor_count:,} tensors and {key_count:,} settings): {WHOLE}.")
    fields = {}
    for _ in range(key_count):
        key = reader.text()
        fields[key] = reader.value(reader.number("I"))
    if (architecture := str(fields.get("general.architecture"))) not in ARCHITECTURES:
        raise UserError(
            f"{path} is of the architecture {architecture[:80]!r}, which is not read: take one of "
            f"{', '.join(ARCHITECTURES)}, or the model's folder or Hub id."
        )
    if fields.get("split.count", 0) not in (0, 1):
        raise UserError(f"{path} is one of several parts: join them first (llama-gguf-split --merge).")
    found = {}
    for _ in range(tensor_count):
        name, dimensions = reader.text(), reader.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise UserError(f"{path} is damaged ({name[:80]!r} has {dimensions} dimensions): {WHOLE}.")
        shape = tuple(reversed(reader.numbers("Q", dimensions)))
        found[name] = shape, reader.number("I"), reader.number()
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20:
        raise UserError(f"{path} is damaged (general.alignment is {alignment!r}): {WHOLE}.")
    start = -(-reader.place // alignment) * alignment
    tensors = {}
    for name, (shape, kind, offset) in found.items():
        tensors[name] = Tensor(shape, kind, start + offset, _bytes(path, name, shape, kind))
        if tensors[name].start + tensors[name].size > len(data):
            raise UserError(f"{path} is cut off before the end of {name[:80]}: {WHOLE}.")
    return Header(fields, tensors)


def _bytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    """The size of a tensor in the file; `UserError` where its type is not read."""
    title, block, size = _block(kind)
    if not size:
        raise UserError(
            f"{path} holds {name[:80]} quantised as {title}, which is not read: take a file in Q4_K_M, Q8_0 or F16."
        )
    if shape[-1] % block:
        raise UserError(f"{path} is damaged ({name[:80]} has rows of {shape[-1]}): {WHOLE}.")
    return math.prod(shape) // block * size


@lru_cache
def _block(kind: int) -> tuple[str, int, int]:
    """Of a ggml type its name, how many values a block holds, and in how many bytes; 0 bytes where it is not read."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    name = f"type {kind}"
    try:
        kind = GGMLQuantizationType(kind)
        name = kind.name
        block, size = GGML_QUANT_SIZES[kind]
        dequantize(np.zeros(size, np.uint8), kind)
    except (KeyError, ValueError, NotImplementedError):
        return name, 1, 0
    return name, block, size


def read_config(path: str | Path) -> dict[str, Any]:
    """The config.json that a GGUF file's header amounts to. Raises `UserError` as `read_header` does."""
    return config_of(Path(path), read_header(path))


def config_of(path: Path, header: Header) -> dict[str, Any]:
    """The same of a header that has been read."""
    fields, tensors, kind = header.fields, header.tensors, header.architecture
    model_type = ARCHITECTURES[kind]

    def number(name: str, wanted: type, default: float | None = None) -> Any:
        value = fields.get(f"{kind}.{name}", default)
        if type(value) is not wanted or not 0 < value < 2**31:
            raise UserError(f"{path} has no number that can be read as {kind}.{name}: take another file of this model.")
        return value

    if fields.get(f"{kind}.expert_count"):
        raise UserError(f"{path} is a mixture of experts; only dense models can be adapted.")
    table, tokens = tensors.get("token_embd.weight"), fields.get("tokenizer.ggml.tokens")
    if type(tokens) is list:
        tokens = len(tokens)
    if table is None or type(tokens) is not int or not 0 < tokens <= table.shape[0]:  # rows beyond them are padding
        raise UserError(f"{path} has no tokenizer, or none that fits: take a file with the whole model.")
    hidden, heads = number("embedding_length", int), number("attention.head_count", int)
    head_dim = number("attention.key_length", int, fields.get(f"{kind}.rope.dimension_count", hidden // heads))
    config = {
        "model_type": model_type,
        "vocab_size": table.shape[0],
        "hidden_size": hidden,
        "intermediate_size": number("feed_forward_length", int),
        "num_hidden_layers": number("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", int),
        "head_dim": head_dim,
        "max_position_embeddings": number("context_length", int),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": end_tokens(header),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    rope = {"rope_type": "default", "rope_theta": number("rope.freq_base", float, 10000.0)}
    scaled = rope | _scaling(path, header, rope["rope_theta"], head_dim)
    config["rope_parameters"] = scaled
    if model_type == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if kind == "gemma3":
        local = {"rope_type": "default", "rope_theta": number("rope.freq_base_swa", float, 10000.0)}
        config["rope_parameters"] = {"full_attention": scaled, "sliding_attention": local}
    if kind.startswith("gemma"):
        # The header does not say it: the largest of both scale by the width of the model, all else by that of a head.
        largest = config["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[kind]
        config["query_pre_attn_scalar"] = hidden // heads if largest else head_dim
    if kind == "gemma2":
        config["attn_logit_softcapping"] = number("attn_logit_softcapping", float, 50.0)
        config["final_logit_softcapping"] = number("final_logit_softcapping", float, 30.0)
    if kind in ("gemma2", "gemma3", "phi3") and fields.get(f"{kind}.attention.sliding_window"):
        config["sliding_window"] = number("attention.sliding_window", int)
    shape = BaseShape.from_config(config)
    if shape.layers > MAX_LAYERS or shape.parameters > header.weights:  # whoever loads it asks for no more than that
        raise UserError(f"{path} is damaged (it holds fewer weights than its header describes): {WHOLE}.")
    return config


def _scaling(path: Path, header: Header, theta: float, head_dim: int) -> dict[str, Any]:
    """How positions are scaled, beyond the default: {}, linearly, or as in Llama 3.1. `UserError` for other ways."""
    fields, kind = header.fields, header.architecture
    way, factor = fields.get(f"{kind}.rope.scaling.type", "none"), fields.get(f"{kind}.rope.scaling.factor", 1.0)
    if fields.get(f"{kind}.rope.dimension_count", head_dim) != head_dim:
        way = "partial"
    if any(name.startswith("rope_factors") for name in header.tensors):
        way = "longrope"
    if way == "none" and (tensor := header.tensors.get("rope_freqs.weight")):
        if tensor.shape == (head_dim // 2,):
            factors = tensor.read(path)
            # Llama 3.1's way: slow waves are stretched by the factor, fast ones are not, those between in part.
            turns = 8192 * theta ** (-2 * np.arange(head_dim // 2) / head_dim) / (2 * math.pi)
            factor = float(f"{factors.max():.4g}")
            fast = np.clip((turns - 1) / 3, 0, 1)
            if np.allclose(factors, 1 / ((1 - fast) / factor + fast), rtol=1e-3):
                given = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
                return {"rope_type": "llama3", "factor": factor, **given}
        way = "rope_freqs"
    if way == "linear" and isinstance(factor, float) and factor > 0:
        return {"rope_type": "linear", "factor": factor}
    if way != "none":
        raise UserError(
            f"{path} scales positions in a way ({str(way)[:80]}) that is not read: give the model's folder or Hub id."
        )
    return {}


def end_tokens(header: Header) -> list[int] | None:
    """The tokens that end an answer, as the header names them: of the text, of a turn, of a message."""
    named = [header.fields.get(f"tokenizer.ggml.{name}_token_id") for name in END_TOKENS]
    return sorted({token for token in named if type(token) is int}) or None


def kept(sha256: str) -> Path:
    """Where in the user's cache the model of a GGUF file with that digest is kept as a folder."""
    return cache_folder("gguf") / f"{sha256[:32]}-{FORMAT}"
