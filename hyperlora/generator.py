"""The thing that people import: descriptions in, LoRA adapters out. Embedder, hypernetwork, offset and z-score."""

import json
import os
import re
import tempfile
import threading
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperlora.config import HyperLoRAConfig, lora_scale, read_json
from hyperlora.embedder import load_embedder
from hyperlora.errors import UserError, first_line
from hyperlora.files import (
    check_finite,
    open_safetensors,
    resolve_folder,
    safetensors_bytes,
    sha256_of_tensors,
    write_atomic,
)
from hyperlora.hypernetwork import Factors, HyperNetwork
from hyperlora.lora import Adapter
from hyperlora.text import check_description

CONFIG, WEIGHTS, DESCRIPTIONS = "hyperlora_config.json", "hyperlora.safetensors", "descriptions.json"
INDEX = f"{WEIGHTS}.index.json"  # beside weights in several files: which tensor is in which
SHARDS = "hyperlora-?????-of-?????.safetensors"
FILES = (CONFIG, WEIGHTS, INDEX, SHARDS, DESCRIPTIONS)  # what is fetched from the Hub
MAX_SHARD = 9_900_000  # bytes of tensors in a file: the Hub wants Git LFS for files above 10 MB
# A forked process has none of the threads that PyTorch keeps, and would wait for them for ever.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
MAX_DESCRIPTIONS_FILE = 512 * 2**20  # bytes
# What decides about adapters beside the weights, whose shapes say the rest; the order of the modules numbers them.
DECISIVE = ("head", "target_modules", "alpha", "use_rslora", "task_input", "offset", "rank_embedding")
DECISIVE += ("embedder", "embedder_revision")
NOTICE = "This description is far from every task that this hypernetwork was trained on, so the adapter may not help."


class _PerModule(nn.Module):
    """Buffers A [layers, r, d_in] and B [layers, d_out, r] of one target module."""

    def __init__(self, a: Tensor, b: Tensor):
        super().__init__()
        self.register_buffer("A", a)
        self.register_buffer("B", b)


class HyperLoRA(nn.Module):
    """Task inputs [n, d_emb] -> LoRA factors of every target module and layer, in one forward pass.

    `network` is the hypernetwork; `offset` (Eq. 6, Eq. 8), `mean` and `std` (App. D) hold `A` [layers, r, d_in] and
    `B` [layers, d_out, r] a module, where the config asks for them; `descriptions` are those of training, with their
    scaled `embeddings` [len(descriptions), d_emb] float16. `embedder` may be set to share one that is loaded.
    """

    def __init__(self, config: HyperLoRAConfig):
        super().__init__()
        self.config = config
        self.network = HyperNetwork(config)
        self.offset = self._per_module(0.0) if config.offset != "none" else None
        self.mean = self._per_module(0.0) if config.z_score else None
        self.std = self._per_module(1.0) if config.z_score else None
        self.descriptions: list[str] = []
        self.register_buffer("embeddings", torch.empty(0, config.d_emb, dtype=torch.float16))
        self.name: str | None = None  # where it was loaded from: a Hub id, or the folder's name
        self._embedder = None
        self._embedder_lock = threading.Lock()

    def _per_module(self, value: float) -> nn.ModuleDict:
        layers, r = self.config.num_layers, self.config.rank
        return nn.ModuleDict(
            {
                name: _PerModule(torch.full((layers, r, d_in), value), torch.full((layers, d_out, r), value))
                for name, (d_in, d_out) in self.config.target_modules.items()
            }
        )

    @property
    def rank(self) -> int:
        """The rank of what `factors` returns: 2r under Eq. 8."""
        return self.config.rank * (2 if self.config.offset == "delta" else 1)

    @property
    def scale(self) -> float:
        """The scale that goes with `factors`: alpha / sqrt(rank) (rsLoRA) or alpha / rank, at the rank of `factors`."""
        return lora_scale(self.config.alpha, self.rank, self.config.use_rslora)

    def factors(self, task_input: Tensor) -> Factors:
        """name -> (A [n, layers, rank, d_in], B [n, layers, d_out, rank]); differentiable. Goes with `scale`.

        `task_input` is [n, d_emb], or ids [n] for learned task vectors. Network, then z-score (App. D), then offset:
        added to A and to B (Eq. 6), or put beside them along the rank (Eq. 8), where B is multiplied by
        config.scale / self.scale, since rsLoRA's scale falls as the rank doubles.
        """
        factors = self.network(task_input)
        for name, (a, b) in factors.items():
            if self.mean is not None:
                mean, std = self.mean[name], self.std[name]
                a, b = a * std.A + mean.A, b * std.B + mean.B
            if self.config.offset == "factors":
                a, b = a + self.offset[name].A, b + self.offset[name].B
            elif self.config.offset == "delta":
                offset = self.offset[name]
                a = torch.cat([a, offset.A.expand_as(a)], dim=-2)
                b = torch.cat([b, offset.B.expand_as(b)], dim=-1) * (self.config.scale / self.scale)
            factors[name] = (a, b)
        return factors

    @cached_property
    def checkpoint(self) -> str:
        """12 hex digits that tell checkpoints apart: a digest of all that makes a description's adapter what it is, as
        it was when they were first asked for."""
        tensors = {name: tensor for name, tensor in self.state_dict().items() if name != "embeddings"}
        facts = self.config.to_dict()
        return sha256_of_tensors(tensors, [facts[name] for name in DECISIVE])[:12]

    # ---- what training fills in ----

    @torch.no_grad()
    def set_offset(self, adapter: Adapter) -> None:
        """Use an adapter of the config's rank and shapes as the offset; its scale is folded into B."""
        if self.offset is None:
            raise UserError("This hypernetwork's config says offset 'none': set it to 'factors' or 'delta' first.")
        self._fill(self.offset, adapter.weights)
        for buffers in self.offset.values():
            buffers.B.mul_(adapter.scale / self.config.scale)

    @torch.no_grad()
    def set_z_score(self, mean: dict[str, tuple[Tensor, Tensor]], std: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Mean and standard deviation of each weight entry over the target adapters (App. D), shaped as the adapter."""
        if self.mean is None:
            raise UserError("This hypernetwork's config says z_score false: set it to true first.")
        self._fill(self.mean, mean)
        self._fill(self.std, std)

    def _fill(self, buffers: nn.ModuleDict, weights: dict[str, tuple[Tensor, Tensor]]) -> None:
        if set(weights) != set(buffers):
            raise UserError(f"Expected the modules {', '.join(buffers)}, not {', '.join(weights)}.")
        for name, (a, b) in weights.items():
            target = buffers[name]
            if a.shape != target.A.shape or b.shape != target.B.shape:
                raise UserError(
                    f"{name} has A {list(a.shape)} and B {list(b.shape)}; "
                    f"the config says {list(target.A.shape)} and {list(target.B.shape)}."
                )
            target.A.copy_(a)
            target.B.copy_(b)

    def set_descriptions(self, descriptions: list[str], embeddings: Tensor) -> None:
        """The training descriptions and their scaled embeddings [len(descriptions), d_emb] (any float dtype)."""
        if embeddings.shape != (len(descriptions), self.config.d_emb):
            raise UserError(
                f"{len(descriptions)} descriptions need embeddings [{len(descriptions)}, {self.config.d_emb}]."
            )
        self.descriptions = list(descriptions)
        self.embeddings = embeddings.detach().to(self.embeddings.device, torch.float16)

    # ---- generating ----

    @property
    def embedder(self):
        """The embedder that the config names, loaded at its first use, on the CPU."""
        with self._embedder_lock:
            if self._embedder is None:
                self.embedder = load_embedder(self.config.embedder, self.config.embedder_revision)
            return self._embedder

    @embedder.setter
    def embedder(self, embedder) -> None:
        if embedder.d_emb != self.config.d_emb:
            raise UserError(
                f"The description encoder gives {embedder.d_emb} values, but this hypernetwork takes "
                f"{self.config.d_emb}: use the encoder that it was trained with, {self.config.embedder}."
            )
        self._embedder = embedder

    @torch.no_grad()
    def generate(self, texts: str | list[str] | None = None, *, embeddings: Tensor | None = None) -> list[Adapter]:
        """One adapter a description, float32, all in one forward pass; the same input gives the same adapter.

        `embeddings` stand in for the texts' own, as `factors` takes them: [n, d_emb], scaled already (length
        sqrt(d_emb)). Texts given beside them are only carried along. `UserError` for a description that is blank, has
        no letter or digit, or is longer than 2,000 characters.
        """
        if texts is None and embeddings is None:
            raise UserError("Give a description, a list of them, or embeddings.")
        if texts is not None:
            texts = [check_description(text) for text in ([texts] if isinstance(texts, str) else texts)]
        if embeddings is None:
            if self.config.task_input != "text":
                raise UserError("This hypernetwork numbers its tasks and reads no descriptions: pass embeddings.")
            embeddings = self.embedder.embed(texts)
        if texts is not None and len(texts) != len(embeddings):
            raise UserError(f"There are {len(texts)} descriptions and {len(embeddings)} embeddings.")
        if not torch.isfinite(embeddings).all():
            raise UserError("The embeddings hold values that are not finite.")
        weight = self.network.task_encoder[0].weight
        embeddings = embeddings.to(weight.device, weight.dtype if embeddings.is_floating_point() else None)
        training = self.training
        self.eval()  # no dropout: the same description gives the same adapter
        try:
            factors = self.factors(embeddings)
        finally:
            self.train(training)
        nearest = [few[0] for few in self.nearest(embeddings)] if self.descriptions else [None] * len(embeddings)
        return [self._adapter(factors, i, texts and texts[i], nearest[i]) for i in range(len(embeddings))]

    def _adapter(self, factors: Factors, i: int, text: str | None, nearest: tuple[str, float] | None) -> Adapter:
        threshold = self.config.notice_threshold
        far = threshold is not None and nearest is not None and nearest[1] < threshold
        return Adapter(
            # A copy, so that one adapter does not keep the whole batch in memory.
            weights={name: (a[i].float().clone(), b[i].float().clone()) for name, (a, b) in factors.items()},
            alpha=self.config.alpha,
            use_rslora=self.config.use_rslora,
            description=text,
            base_model=self.config.base_model,
            base_revision=self.config.base_revision,
            prompt_style=self.config.chat_style,
            hyperlora=self.name,
            nearest=nearest,
            notice=NOTICE if far else None,
        )

    def norm_notice(self, adapter: Adapter) -> str | None:
        """A sentence where the adapter's ‖ΔW‖, at its strength, leaves the range that the config keeps; else None."""
        if self.config.norm_range is None:
            return None
        (low, high), norm = self.config.norm_range, adapter.norm()
        if low <= norm <= high:
            return None
        effect = "it may hardly change the answers" if norm < low else "the answers may fall apart"
        return f"The adapter's ‖ΔW‖ is {norm:.3g}, and {low:.3g} to {high:.3g} for the trained tasks: {effect}."

    def nearest(self, embeddings: Tensor, k: int = 1) -> list[list[tuple[str, float]]]:
        """The k training descriptions that are nearest to each row of [n, d_emb], the nearest first, each with its
        cosine; some must be stored."""
        cosine = F.normalize(embeddings.float(), dim=-1) @ F.normalize(self.embeddings.float(), dim=-1).T
        best, index = cosine.topk(min(k, len(self.descriptions)), dim=-1)
        return [
            [(self.descriptions[i], c) for c, i in zip(cosines, few, strict=True)]
            for cosines, few in zip(best.tolist(), index.tolist(), strict=True)
        ]

    # ---- files ----

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """hyperlora_config.json, hyperlora.safetensors, descriptions.json. `dtype` (bfloat16, float16) halves the file;
        it is read back as float32.

        Above 10 MB the weights are several files, hyperlora-00001-of-00002.safetensors and so on, with an index; only a
        tensor that is larger by itself makes a larger file.
        """
        folder = Path(folder)
        state = self.state_dict()
        if dtype is not None:
            state = {name: tensor if name == "embeddings" else tensor.to(dtype) for name, tensor in state.items()}
        _write_weights(folder, state)
        write_atomic(folder / DESCRIPTIONS, json.dumps(self.descriptions, ensure_ascii=False, indent=0).encode())
        self.config.save(folder / CONFIG)

    def push_to_hub(self, repo_id: str, private: bool = False, dtype: torch.dtype | None = None) -> str:
        """Upload what `save_pretrained` writes; returns the address. Needs a login or HF_TOKEN; else `UserError`."""
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype)
            try:
                url = HfApi().create_repo(repo_id, private=private, exist_ok=True)
                old = [WEIGHTS, INDEX, SHARDS]  # an earlier commit's, unless they come again
                HfApi().upload_folder(repo_id=repo_id, folder_path=folder, delete_patterns=old)
            except Exception as error:  # whatever a network can do
                raise UserError(
                    f"{repo_id} could not be uploaded ({first_line(error)}): check its name and the network, and log "
                    "in with `hf auth login`, or set HF_TOKEN, as somebody who may write there."
                ) from error
        return str(url)

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, revision: str | None = None) -> "HyperLoRA":
        """Read a folder or a Hub repository, in evaluation mode, float32.

        Nothing is unpickled; every tensor's shape is checked against the config before it is read. `UserError` names
        the file that is missing, damaged or does not fit.
        """
        folder = resolve_folder(path_or_id, revision, list(FILES))
        config = HyperLoRAConfig.load(folder / CONFIG)
        descriptions = read_json(folder / DESCRIPTIONS, MAX_DESCRIPTIONS_FILE)
        if not isinstance(descriptions, list) or not all(isinstance(text, str) for text in descriptions):
            raise UserError(f"{folder / DESCRIPTIONS} is damaged: it must be a list of texts.")
        with torch.device("meta"):  # shapes without memory
            model = cls(config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        expected["embeddings"] = (len(descriptions), config.d_emb)
        state = _read_weights(folder, expected)
        embeddings = state.pop("embeddings").half()
        model.load_state_dict(state | {"embeddings": torch.empty(0, config.d_emb).half()}, assign=True)
        model.set_descriptions(descriptions, embeddings)
        model.name = folder.resolve().name if Path(path_or_id).expanduser().is_dir() else str(path_or_id)
        return model.eval()


def _write_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """As one file, or in shards with their index, as huggingface_hub splits them; what an earlier save left goes."""
    from huggingface_hub import split_torch_state_dict_into_shards

    state = {name: state[name] for name in sorted(state)}
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="hyperlora{suffix}.safetensors", max_shard_size=MAX_SHARD
    )
    for file, names in split.filename_to_tensors.items():
        write_atomic(folder / file, safetensors_bytes({name: state[name] for name in names}))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_atomic(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())
        (folder / WEIGHTS).unlink(missing_ok=True)  # at last: while there is one, it is what is read
    else:
        (folder / INDEX).unlink(missing_ok=True)
    for path in folder.glob(SHARDS):
        if path.name not in split.filename_to_tensors:
            path.unlink()


def _read_weights(folder: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a folder's weights as float32, once their names and shapes are known to be `expected`."""
    parts = _shards(folder, set(expected))
    for path, names in parts.items():
        with open_safetensors(path) as file:
            if odd := sorted(names ^ set(file.keys())):
                raise UserError(f"{path} does not fit {CONFIG}: it lacks or adds {odd[0]} ({len(odd)} such tensors).")
            for name in names:
                found = tuple(file.get_slice(name).get_shape())
                if found != expected[name]:
                    raise UserError(
                        f"{path} does not fit {CONFIG}: {name} is {list(found)}, not {list(expected[name])}."
                    )
    state = {}
    for path, names in parts.items():
        with open_safetensors(path) as file:
            for name in names:
                # A copy, whose bits and speed do not depend on where the file has it, nor on what becomes of the file.
                state[name] = file.get_tensor(name).to(torch.float32, copy=True)
                check_finite(name, state[name], path)
    return state


def _shards(folder: Path, expected: set[str]) -> dict[Path, set[str]]:
    """The weights' files, and the names of the tensors that each must hold."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return {folder / WEIGHTS: expected}
    index = read_json(folder / INDEX)
    found = index.get("weight_map") if isinstance(index, dict) else None
    # Only plain names beside the index: a damaged one may not lead elsewhere.
    if not isinstance(found, dict) or not all(
        isinstance(file, str) and re.fullmatch(r"hyperlora-\d{5}-of-\d{5}\.safetensors", file)
        for file in found.values()
    ):
        raise UserError(f"{folder / INDEX} is damaged: it must say which hyperlora-*.safetensors has which tensor.")
    if odd := sorted(expected ^ set(found)):
        raise UserError(f"{folder / INDEX} does not fit {CONFIG}: it lacks or adds {odd[0]} ({len(odd)} such tensors).")
    parts: dict[Path, set[str]] = {}
    for name, file in found.items():
        parts.setdefault(folder / file, set()).add(name)
    if missing := [path.name for path in parts if not path.is_file()]:
        raise UserError(
            f"{folder} lacks {missing[0]}, one of the {len(parts)} files of its weights: get it again from where it "
            "came."
        )
    return parts
