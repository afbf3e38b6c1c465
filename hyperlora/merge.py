"""A base model with an adapter in its weights, W + ΔW in float32, as a folder for transformers or as a GGUF file.

The weights are those of the base's files, not those in memory, which may have few bits. A tensor or a file of tensors
is in memory at a time.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from gguf import GGUFReader, GGUFValueType
from gguf.gguf_writer import GGUFValue
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hyperlora.base import end_tokens, model_folder
from hyperlora.config import read_json
from hyperlora.conversion import LARGE, SHARD
from hyperlora.errors import UserError
from hyperlora.files import open_safetensors, safetensors_bytes, write_atomic
from hyperlora.gguf import Header, read_header
from hyperlora.llama_cpp import KINDS, Part, architecture, as_written, describe_model, tensor_namer, write_model
from hyperlora.lora import Adapter, path_in_layer
from hyperlora.pipe import Pipeline
from hyperlora.prompt import own_template

Report = Callable[[float], None]
FLOATS = ("F32", "F16", "BF16")
COPIED = ("*.json", "tokenizer.model", "LICENSE*", "NOTICE*", "USE_POLICY*")
LEFT = ("*.safetensors.index.json", "adapter_config.json", "README.md")


class Base:
    """The files of a base model, a folder or a GGUF file, and where an adapter changes them. Raises `UserError` where
    they hold quantised weights, or lack what the adapter changes."""

    def __init__(
        self,
        source: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        adapter: Adapter | None = None,
    ):
        self.source, self.model, self.tokenizer, self.adapter = source, model, tokenizer, adapter
        self.config: PreTrainedConfig = model.config
        self.gguf: Header | None = read_header(source) if source.is_file() else None
        self.folder = model_folder(source)
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in _weights(self.folder):
            with open_safetensors(file) as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    part = opened.get_slice(name)
                    if part.get_dtype() not in FLOATS:
                        raise UserError(
                            f"The base model's {name} is held as {part.get_dtype()}: merging needs its weights in "
                            "float; take the adapter alone, or open the base that was not quantised."
                        )
                    self.files[name], self.shapes[name] = file, tuple(part.get_shape())
        self.changes = {
            f"model.layers.{layer}.{path_in_layer(module)}.weight": (module, layer)
            for module in (adapter.weights if adapter else ())
            for layer in range(adapter.num_layers)
        }
        if missing := [name for name in self.changes if name not in self.files]:
            raise UserError(f"The base model's files have no {missing[0]}, which the adapter changes.")

    @classmethod
    def of(cls, pipe: Pipeline, adapter: Adapter) -> "Base":
        """A pipeline's; `UserError` where its files are not known."""
        if pipe.files is None:
            raise UserError("The files of the base model are not known here: open it with hyperlora.pipeline.")
        return cls(pipe.files, pipe.adapted.model, pipe.tokenizer, adapter)

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(map(_count, self.shapes.values()))

    def read(self, name: str) -> Tensor:
        """A tensor in float32, with what the adapter adds."""
        with safe_open(self.files[name], framework="pt") as file:
            values = file.get_tensor(name).float()
        if name in self.changes:
            delta = self.adapter.delta_w(*self.changes[name]).detach().float().cpu()
            if delta.shape != values.shape:
                raise UserError(f"The adapter does not fit the base model's {name}.")
            values = values + delta
        return values

    def parts(self) -> dict[str, Part]:
        """The tensors as GGUF has them, in the order of the layers."""
        name_of = tensor_namer(self.config)
        names = [name for name in self.files if name != "lm_head.weight" or not self.config.tie_word_embeddings]
        return {
            name_of(name): Part(self.shapes[name], lambda name=name: as_written(self.config, name, self.read(name)))
            for name in names
        }


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _weights(folder: Path) -> list[Path]:
    """The files with the weights; `UserError` where there are none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index)
        named = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(named, dict):
            raise UserError(f"{index} is damaged: it should say which file holds which tensor.")
        return [folder / Path(str(name)).name for name in sorted(set(map(str, named.values())))]
    return [folder / "model.safetensors"]


def usual_dtype(weights: int, gguf: bool) -> str:
    """float32 for a model that is small, 16 bits for others."""
    if weights < LARGE:
        return "float32"
    return "float16" if gguf else "bfloat16"


def merged_bytes(base: Base, dtype: str) -> int:
    """What the weights take on the disk."""
    return base.weights * KINDS[dtype][0].itemsize


def memory_bytes(base: Base, gguf: bool) -> int:
    """What merging needs at once: a file of tensors twice, or the largest tensor a few times."""
    largest = 4 * max(map(_count, base.shapes.values()))
    return 3 * largest if gguf else 2 * min(SHARD, 4 * base.weights) + 2 * largest


def write_folder(base: Base, folder: Path, dtype: str, report: Report) -> None:
    """The merged model as `AutoModelForCausalLM.from_pretrained` reads it, with the chat template of the training."""
    wanted = KINDS[dtype][0]
    empty = {name: torch.empty(shape, dtype=wanted, device="meta") for name, shape in base.shapes.items()}
    shards = split_torch_state_dict_into_shards(
        empty, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD
    )
    done = 0
    for file, names in shards.filename_to_tensors.items():
        tensors = {}
        for name in names:
            report(float(done))
            tensors[name] = base.read(name).to(wanted)
            if not tensors[name].isfinite().all():
                raise UserError(f"{name} does not fit into {dtype}: choose bfloat16 or float32 for the merged model.")
            done += tensors[name].nbytes
        write_atomic(folder / file, safetensors_bytes(tensors))
    report(float(done))
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": dict(sorted(shards.tensor_to_filename.items()))}
        write_atomic(folder / "model.safetensors.index.json", json.dumps(index, indent=2).encode())
    for pattern in COPIED:
        for path in base.folder.glob(pattern):
            if not any(path.match(left) for left in LEFT):
                shutil.copyfile(path, folder / path.name)
    _change(folder / "config.json", {"dtype": dtype}, ("torch_dtype", "hub_name"))
    _change(folder / "tokenizer_config.json", {}, ("chat_template",))
    if (template := own_template(base.tokenizer)) is not None:
        write_atomic(folder / "chat_template.jinja", template.encode())


def _change(path: Path, new: dict[str, str], without: tuple[str, ...]) -> None:
    """Settings in a JSON file, some of them others, some not there."""
    if path.is_file():
        content = {name: value for name, value in read_json(path).items() if name not in without} | new
        write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_gguf(base: Base, path: Path, dtype: str, report: Report) -> None:
    """The merged model as one file for llama.cpp. What the base's own GGUF file says, where it is one, is kept."""
    parts = base.parts()
    if base.gguf is None:
        ends = end_tokens(base.model, base.tokenizer)
        fields = describe_model(base.config, base.tokenizer, ends, parts)
    else:
        fields = _said(base.source)
        template = own_template(base.tokenizer)
        if template is not None:
            fields["tokenizer.chat_template"] = GGUFValue(template, GGUFValueType.STRING)
        for name, tensor in base.gguf.tensors.items():
            if name not in parts:  # as Llama 3.1's positions
                parts[name] = Part(tensor.shape, lambda tensor=tensor: torch.from_numpy(tensor.read(base.source)))
    write_model(path, architecture(base.config), fields, parts, dtype, report)


def _said(path: Path) -> dict[str, GGUFValue]:
    """A GGUF file's settings, but for what is said of the file itself."""
    left = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version", "general.alignment")
    return {
        name: GGUFValue(field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for name, field in GGUFReader(path).fields.items()
        if not name.startswith(left)
    }
