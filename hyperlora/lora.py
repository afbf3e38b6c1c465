"""A LoRA adapter as tensors, and its plain PEFT form: two files that any LoRA software reads."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperlora.config import MAX_RANK, PromptStyle, lora_scale, read_json
from hyperlora.errors import UserError, shown
from hyperlora.files import open_safetensors, safetensors_bytes, sha256_of_tensors, write_atomic
from hyperlora.text import MAX_DESCRIPTION, check_text

Space = Literal["delta_w", "factors"]

# Where a module lives inside a layer of Llama-like models (Llama, Mistral, Qwen, Gemma), so that no base is needed.
PATHS = {f"{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"}
PATHS |= {f"{name}_proj": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
PATHS |= {"qkv_proj": "self_attn.qkv_proj", "gate_up_proj": "mlp.gate_up_proj"}  # Phi-3's
PEFT_KEY = re.compile(r"base_model\.model\.model\.layers\.(\d{1,4})\.(\w+\.\w+)\.lora_([AB])\.weight")

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PICKLES = [f"adapter_model.{suffix}" for suffix in ("bin", "pt", "pth", "pkl", "pickle", "ckpt")]
MAX_WEIGHTS_BYTES = 2**31

# What changes the meaning of A and B in a PEFT folder beyond plain LoRA; each must be absent, null, false or empty.
UNSUPPORTED = (
    *("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "layer_replication"),
    *("fan_in_fan_out", "lora_bias", "use_qalora", "alora_invocation_tokens", "trainable_token_indices"),
    *("target_parameters", "arrow_config", "kasa_config", "velora_config", "monteclora_config", "use_bdlora"),
)
# What else PEFT's config of a plain LoRA says (Fig. 7).
PLAIN = dict.fromkeys(("auto_mapping", "layer_replication", "layers_pattern", "layers_to_transform", "modules_to_save"))
PLAIN |= {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True, "use_dora": False}
PLAIN |= {"alpha_pattern": {}, "rank_pattern": {}, "loftq_config": {}, "fan_in_fan_out": False}
PLAIN |= {"init_lora_weights": True, "megatron_config": None, "megatron_core": "megatron.core"}
# Other ways to start also change the base model's own weights.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass
class Adapter:
    """A LoRA: ΔW = scale · B A for every target module and layer. Wrong shapes raise `UserError`."""

    weights: dict[str, tuple[Tensor, Tensor]]
    """Module name -> (A [layers, r, d_in], B [layers, d_out, r]); one rank and one number of layers for all modules."""
    alpha: float
    use_rslora: bool
    lora_dropout: float = 0.05
    """What the adapter was trained with; exported, never applied when chatting."""
    description: str | None = None
    base_model: str | None = None
    base_revision: str | None = None
    prompt_style: PromptStyle = "input"
    """What the prompts held that it was trained with."""
    hyperlora: str | None = None
    """The hypernetwork that it came from: a folder or Hub id."""
    nearest: tuple[str, float] | None = None
    """The nearest training description and its cosine."""
    notice: str | None = None
    """What the visitor should know, such as that no trained task is near."""
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.weights:
            raise UserError("The adapter has no weights; an adapter needs at least one module.")
        if self.description is not None:
            check_text(self.description, "The adapter's description")
        for module, (A, B) in self.weights.items():
            if not (A.ndim == B.ndim == 3 and A.shape[:2] == B.shape[::2]):
                raise UserError(
                    f"The adapter's {module} has A {list(A.shape)} and B {list(B.shape)}; "
                    "they should be [layers, r, d_in] and [layers, d_out, r]."
                )
        if len({A.shape[:2] for A, _ in self.weights.values()}) > 1:
            raise UserError(
                "The adapter's modules differ in rank or in number of layers; they should all have the same."
            )
        if not isinstance(self.strength, int | float) or not abs(self.strength) <= 1e6:
            raise UserError(f"The strength should be a number from -1e6 to 1e6, not {shown(self.strength)}.")

    @property
    def num_layers(self) -> int:
        """Layers of the base model, each of which has every module."""
        return next(iter(self.weights.values()))[0].shape[0]

    @property
    def rank(self) -> int:
        """r, the same for all modules."""
        return next(iter(self.weights.values()))[0].shape[1]

    @property
    def scale(self) -> float:
        """What B A is multiplied by: alpha / √r (rsLoRA) or alpha / r, times the strength."""
        return lora_scale(self.alpha, self.rank, self.use_rslora) * self.strength

    def delta_w(self, module: str, layer: int) -> Tensor:
        """ΔW [d_out, d_in] of one module of one layer."""
        A, B = self.weights[module]
        return self.scale * B[layer] @ A[layer]

    def norms(self) -> Tensor:
        """Frobenius norm of each ΔW, float32 [layers, modules] in the order of `weights`, through products of r by r:
        |BA|² = tr(BᵀB AAᵀ)."""
        squares = [((B.mT @ B) * (A @ A.mT)).sum(dim=(1, 2)).float() for A, B in self.weights.values()]
        return abs(self.scale) * torch.stack(squares, dim=1).clamp(min=0).sqrt()

    def norm(self) -> float:
        """Frobenius norm of ΔW over all modules and layers."""
        return float(self.norms().norm())

    def scaled(self, strength: float) -> "Adapter":
        """The same adapter, its tensors shared, at this strength (1 is as generated, 0 is the base model)."""
        return replace(self, strength=strength)

    @staticmethod
    def blend(adapters: Sequence["Adapter"], weights: Sequence[float], space: Space = "delta_w") -> "Adapter":
        """The weighted sum of `adapters`, each at its strength.

        In "delta_w" its ΔW is exactly Σ weight · ΔW, and its rank the sum of theirs. In "factors" its A is Σ weight · A
        and its B Σ weight · B, of one rank: a point between the adapters where the weights add up to 1; its ΔW also
        holds products of one's B and another's A. Raises `UserError` where they differ in base model, modules or sizes
        (for "factors": in rank), or a weight is missing.
        """
        if not adapters or len(adapters) != len(weights):
            raise UserError(f"A blend needs as many weights as adapters; got {len(adapters)} and {len(weights)}.")
        first, ranks = adapters[0], [adapter.rank for adapter in adapters]
        for other in adapters[1:]:
            bases = {first.base_model, other.base_model} - {None}
            if len(bases) > 1 or other._sizes() != first._sizes():
                raise UserError("These adapters belong to different base models; blend adapters of one base only.")
        if space == "factors" and len(set(ranks)) > 1:
            raise UserError(f"These adapters have the ranks {sorted(set(ranks))}: blend them in ΔW space.")
        # The scale changes with the rank, so B absorbs it, and each strength.
        scale = lora_scale(first.alpha, ranks[0] if space == "factors" else sum(ranks), first.use_rslora)
        parts = [adapter.scaled(weight * adapter.strength) for adapter, weight in zip(adapters, weights, strict=True)]
        blended = {}
        for module in first.weights:
            As = [adapter.weights[module][0] for adapter in adapters]
            Bs = [part.weights[module][1] * (part.scale / scale) for part in parts]
            if space == "factors":
                blended[module] = sum(A * weight for A, weight in zip(As, weights, strict=True)), sum(Bs)
            else:
                blended[module] = torch.cat(As, dim=1), torch.cat(Bs, dim=2)
        texts = [f"{part.strength:g} * {part.description}" for part in parts if part.description]
        description = " + ".join(texts) or None
        return replace(first, weights=blended, description=description, nearest=None, notice=None, strength=1.0)

    def cut(self, rank: int) -> tuple["Adapter", float]:
        """The adapter of at most that rank whose ΔW are nearest to these, by SVD; and the relative error of all ΔW
        together, ‖ΔW - ΔW'‖ / ‖ΔW‖.

        No ΔW is formed: with B = Q_B R_B and Aᵀ = Q_A R_A, its singular values are those of R_B R_Aᵀ, r by r.
        """
        if rank >= self.rank:
            return self, 0.0
        old, new = (lora_scale(self.alpha, r, self.use_rslora) for r in (self.rank, rank))
        weights, lost, whole = {}, 0.0, 0.0
        for module, (A, B) in self.weights.items():
            # Double, so that no product of anybody's weights is infinite, which the SVD does not take.
            (Q_B, R_B), (Q_A, R_A) = torch.linalg.qr(B.cpu().double()), torch.linalg.qr(A.cpu().double().mT)
            U, S, Vh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
            lost, whole = lost + float(S[:, rank:].square().sum()), whole + float(S.square().sum())
            root = S[:, :rank].sqrt()
            few = rank - root.shape[1]  # where d_in or d_out is smaller than the rank
            weights[module] = (
                F.pad(root[:, :, None] * (Vh[:, :rank] @ Q_A.mT), (0, 0, 0, few)).to(A),
                F.pad((Q_B @ U[:, :, :rank]) * (root * (old / new))[:, None], (0, few)).to(B),
            )
        return replace(self, weights=weights), math.sqrt(lost / whole) if whole else 0.0

    def digest(self) -> str:
        """64 hex digits: the SHA-256 of what its ΔW are made of, wherever it was read from."""
        tensors = {f"{module}.{side}": pair[i] for module, pair in self.weights.items() for i, side in enumerate("AB")}
        return sha256_of_tensors(tensors, self.scale)

    def _sizes(self) -> dict[str, tuple[int, int, int]]:
        return {module: (A.shape[0], A.shape[2], B.shape[1]) for module, (A, B) in self.weights.items()}

    def to_peft(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """PEFT's config (Fig. 7) and state dict, on the CPU; the strength is folded into B."""
        config = PLAIN | {
            "base_model_name_or_path": self.base_model,
            "lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
            "lora_dropout": self.lora_dropout,
            "r": self.rank,
            "revision": self.base_revision,
            "target_modules": sorted(self.weights),
            "use_rslora": self.use_rslora,
        }
        state = {}
        for module, (A, B) in self.weights.items():
            path, A, B = path_in_layer(module), A.detach().cpu(), (B.detach() * self.strength).cpu()
            for layer in range(self.num_layers):
                key = f"base_model.model.model.layers.{layer}.{path}.lora_"
                state[f"{key}A.weight"], state[f"{key}B.weight"] = A[layer].contiguous(), B[layer].contiguous()
        return dict(sorted(config.items())), state

    @classmethod
    def from_peft(cls, config: dict[str, Any], state: dict[str, Tensor]) -> "Adapter":
        """An adapter from PEFT's config and state dict of any float dtype; its weights are float32, as PEFT loads them.

        Raises `UserError` that names what is not plain LoRA, and any wrong shape.
        """
        r, alpha = check_peft_config(config)
        layers: dict[str, dict[str, dict[int, Tensor]]] = {}  # module -> A or B -> layer -> tensor
        for key, tensor in state.items():
            match = PEFT_KEY.fullmatch(key)
            module = match and match[2].rpartition(".")[2]
            if not match or PATHS.get(module) != match[2]:
                raise UserError(f"The adapter holds {key[:100]!r}, which is not a LoRA weight of a Llama-like layer.")
            if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
                raise UserError(f"The adapter's {key} is {tensor.dtype}; it should be float32, float16 or bfloat16.")
            if tensor.ndim != 2 or tensor.shape[match[3] == "B"] != r:
                raise UserError(f"The adapter's {key} has shape {list(tensor.shape)}, which does not fit its rank {r}.")
            if not tensor.isfinite().all():
                raise UserError(f"The adapter's {key} holds values that are not finite; it is damaged.")
            layers.setdefault(module, {"A": {}, "B": {}})[match[3]][int(match[1])] = tensor.float()
        depth = 1 + max((layer for sides in layers.values() for side in sides.values() for layer in side), default=-1)
        for module, sides in layers.items():
            for name, side in sides.items():
                if missing := sorted(set(range(depth)) - set(side)):
                    raise UserError(f"The adapter lacks lora_{name} of {module} in layer {missing[0]}.")
                if len({tensor.shape for tensor in side.values()}) > 1:
                    raise UserError(f"The adapter's lora_{name} of {module} has different shapes in different layers.")
        stacked = {
            module: tuple(torch.stack([sides[name][layer] for layer in range(depth)]) for name in "AB")
            for module, sides in sorted(layers.items())
        }
        return cls(
            stacked,
            alpha=alpha,
            use_rslora=config.get("use_rslora", False),
            lora_dropout=float(config.get("lora_dropout", 0.0)),
            base_model=config.get("base_model_name_or_path"),
            base_revision=config.get("revision"),
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a plain PEFT folder; what PEFT has no place for is kept in the safetensors file's metadata."""
        config, state = self.to_peft()
        directory = Path(directory)
        notes = {"description": self.description, "hyperlora": self.hyperlora}
        notes |= {"prompt_style": self.prompt_style} if self.prompt_style != "input" else {}
        data = safetensors_bytes(state, {key: value for key, value in notes.items() if value})
        write_atomic(directory / WEIGHTS_FILE, data)
        write_atomic(directory / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "Adapter":
        """Read a plain PEFT folder. Raises `UserError` for a pickle, a damaged or huge file, or what is not LoRA."""
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"There is no folder {directory}; give the folder that holds {CONFIG_FILE}.")
        for pickle in PICKLES:
            if (directory / pickle).exists():
                raise UserError(
                    f"{directory / pickle} could run code when read; save the adapter as safetensors instead."
                )
        config = read_json(directory / CONFIG_FILE)
        path = directory / WEIGHTS_FILE
        with open_safetensors(path) as file:  # checks that the header's offsets fit the file
            if path.stat().st_size > MAX_WEIGHTS_BYTES:
                raise UserError(f"{path} is larger than {MAX_WEIGHTS_BYTES / 2**30:g} GiB; that is no LoRA adapter.")
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        notes = {key: metadata[key][:MAX_DESCRIPTION] for key in ("description", "hyperlora") if key in metadata}
        if (style := metadata.get("prompt_style")) in get_args(PromptStyle):
            notes["prompt_style"] = style
        return replace(cls.from_peft(config, state), **notes)


def path_in_layer(module: str) -> str:
    """Where a module lives inside a layer; `UserError` for one that is not known."""
    if module not in PATHS:
        raise UserError(f"The module {module} cannot be exported; only {', '.join(PATHS)} can.")
    return PATHS[module]


def check_peft_config(config: dict[str, Any]) -> tuple[int, float]:
    """r and alpha of a config that is plain LoRA; `UserError` by name for what is not."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError("The adapter's config does not say peft_type LORA; only LoRA adapters can be loaded.")
    for key in UNSUPPORTED:
        if config.get(key):
            raise UserError(f"The adapter uses {key}, which is not supported; only plain LoRA adapters can be loaded.")
    if config.get("bias", "none") != "none":
        raise UserError("The adapter trains biases, which is not supported; only plain LoRA adapters can be loaded.")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS or type(start) in (int, float):  # 1 == True
        raise UserError(f"The adapter's init_lora_weights is {shown(start)}, which changes the base; not supported.")
    r, alpha, dropout = config.get("r"), config.get("lora_alpha"), config.get("lora_dropout", 0.0)
    for key, good, wanted in (
        ("r", type(r) is int and 1 <= r <= MAX_RANK, f"a whole number from 1 to {MAX_RANK}"),
        ("lora_alpha", type(alpha) in (int, float) and 0 < alpha < 1e6, "a number above 0"),
        ("lora_dropout", type(dropout) in (int, float) and 0 <= dropout <= 1, "a number from 0 to 1"),
        ("use_rslora", type(config.get("use_rslora", False)) is bool, "true or false"),
        *((key, isinstance(config.get(key), str | None), "a text") for key in ("base_model_name_or_path", "revision")),
    ):
        if not good:
            raise UserError(f"The adapter's {key} should be {wanted}, not {shown(config.get(key))}.")
    return r, float(alpha)
