"""Read a hypernetwork checkpoint of the paper's public implementation, SakanaAI/text-to-lora, as a native one.

Such a folder holds hypermod.pt (a state dict), args.yaml (the training arguments) and adapter_config.json (PEFT's). The
network that comes out generates the same weights: what the format has beyond the native one is folded into the tensors.
Nothing in a folder is trusted: no pickle is run, and every size is checked before memory is taken for it.
"""

import math
import pickletools
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from hyperlora.config import Head, HyperLoRAConfig, read_json
from hyperlora.embedder import LAST_TOKEN
from hyperlora.errors import UserError, first_line
from hyperlora.files import check_finite, resolve_folder
from hyperlora.generator import HyperLoRA
from hyperlora.lora import check_peft_config
from hyperlora.presets import GTE, GTE_REVISION
from hyperlora.prompt import TRAINED

WEIGHTS, ARGS, ADAPTER = "hypermod.pt", "args.yaml", "adapter_config.json"
MAX_WEIGHTS_BYTES = 8 * 2**30
MAX_ARGS_BYTES = 2**20
MAX_PICKLE_BYTES = 2**21  # the structure of a state dict, without its tensors
MAX_TENSORS = 10_000
SUBFOLDER = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*")

# What a state dict's pickle names; `weights_only` would also let through calls that allocate memory at will.
PLAIN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch (Float|Half|BFloat16|Double)Storage"
)
# A native parameter's name begins as on the left, the public one's as on the right.
PREFIXES = {
    "task_encoder.": "task_encoder.mlp.",
    "module_encoder.": "layer_type_encoder.",
    "layer_encoder.": "layer_depth_encoder.",
    "mlp0.0.": "mixer.1.",  # one more dropout in front
    "mlp0.3.": "mixer.4.",
    "mlp1.": "mlp1.mlp.",
    "mlp2.": "mlp2.mlp.",
    "mlp3.": "mlp3.",
    "ab_norm.": "out_emb_norm.",
    "rank_encoder.": "pos_emb.",
    "heads.": "heads.",
}
OFFSET, MEAN, STD = "AB_offset", "mean_recon_target", "std_recon_target"
# What the released checkpoints were trained with; args.yaml may name a folder of whoever trained.
RELEASED = (*TRAINED, GTE)


def import_checkpoint(
    source: str | Path, subfolder: str | None = None, revision: str | None = None, order: list[str] | None = None
) -> HyperLoRA:
    """The native hypernetwork of a public checkpoint, in evaluation mode, float32.

    `source`: a folder, or a Hub id; `subfolder`: of either. `order`: the module types as the checkpoint numbers them;
    the file does not say it, so that None takes that of args.yaml and sets the config's `module_order_assumed`.
    The training descriptions are not in a checkpoint, so that the result has none. Raises `UserError` where a file is
    missing or damaged, and by name for what the native form cannot represent.
    """
    folder = _folder(source, subfolder, revision)
    args = _read_args(folder / ARGS)
    adapter = read_json(folder / ADAPTER)
    _check_kind(args, adapter, folder)
    state = _read_state(folder / WEIGHTS)
    config = _config(args, adapter, state, order, folder / WEIGHTS)
    with torch.device("meta"):  # shapes without memory
        model = HyperLoRA(config)
    tensors = _convert(model, args, state, folder / WEIGHTS)
    model.load_state_dict(tensors | {"embeddings": torch.empty(0, config.d_emb).half()}, assign=True)
    model.name = str(source) if subfolder is None else f"{source}/{subfolder}"
    if Path(source).expanduser().is_dir():
        model.name = folder.resolve().name
    return model.eval()


def names_of(folder: str | Path) -> tuple[str | None, str | None]:
    """The base model and the description encoder that the checkpoint in FOLDER names; None for one that it does not."""
    args = _read_args(_folder(folder, None, None) / ARGS)
    return _hub_id(args.model_dir), _hub_id(args.emb_model)


def _folder(source: str | Path, subfolder: str | None, revision: str | None) -> Path:
    if subfolder is not None and not SUBFOLDER.fullmatch(subfolder):
        raise UserError(f"The subfolder should be a path inside {source}, such as trained_t2l/NAME, not {subfolder!r}.")
    inside = f"{subfolder}/" if subfolder else ""
    folder = resolve_folder(source, revision, [inside + name for name in (WEIGHTS, ARGS, ADAPTER)]) / inside
    for name in (WEIGHTS, ARGS, ADAPTER):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is missing: a text-to-lora checkpoint holds {WEIGHTS}, {ARGS}, {ADAPTER}."
            )
    return folder


# ---- args.yaml and adapter_config.json ----


@dataclass
class _Args:
    """The training arguments that decide the network and what it reads, by their public names."""

    training_task: str = ""
    target_modules: list = field(default_factory=list)
    model_dir: str = ""
    emb_model: str = ""
    exp_setup: str = ""
    encoder_type: str = "linear"
    use_one_hot_task_emb: bool = False
    shared_AB_head: bool = False
    autoreg_gen: bool = False
    learnable_pos_emb: bool = False
    pred_z_score: bool = False
    factorized: bool = False
    delta_w_scaling: float = 10_000.0
    hypernet_latent_size: int = 128
    head_in_size: int = 512

    @property
    def head(self) -> Head:
        """The native name of what the heads give at once."""
        if self.shared_AB_head:
            return "S" if self.autoreg_gen else "M"
        return "R" if self.autoreg_gen else "L"

    @property
    def z_scores(self) -> bool:
        """Whether the network predicts z-scores; SFT ignores the argument, which is true by default."""
        return self.training_task == "recon" and self.pred_z_score

    @property
    def scaled(self) -> bool:
        """Whether the network was trained to give delta_w_scaling times ΔW; then no offset is added."""
        return self.training_task == "recon" and not self.factorized


def _read_args(path: Path) -> _Args:
    if path.stat().st_size > MAX_ARGS_BYTES:
        raise UserError(f"{path} is larger than {MAX_ARGS_BYTES:,} bytes; it is not the kind of file it should be.")
    names, found = {each.name for each in fields(_Args)}, {}
    try:
        # Composed only, so that an alias stays one node; of the values, but a few short ones are constructed.
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
            items = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                if not all(isinstance(item, yaml.ScalarNode) and len(item.value) <= 1000 for item in items):
                    raise ValueError(f"{key.value} is nested or long")
                found[key.value] = loader.construct_object(value, deep=True)
    except Exception as error:  # beside its own errors the library lets through those of the values
        raise UserError(f"{path} is damaged ({first_line(error)[:100]}); get it again from where it came.") from error

    args = _Args(**{name: value for name, value in found.items() if value is not None})

    def check(name: str, good: bool, wanted: str) -> None:
        if not good:
            raise UserError(f"{path}: {name} should be {wanted}, not {str(found.get(name))[:80]!r}.")

    for each in fields(_Args):
        if wanted := {str: "a text", bool: "true or false", int: "a whole number"}.get(each.type):
            check(each.name, type(getattr(args, each.name)) is each.type, wanted)
    check("training_task", args.training_task in ("sft", "recon"), "sft or recon")
    check("pred_z_score", args.training_task == "sft" or "pred_z_score" in found, "true or false")
    scaling, modules = args.delta_w_scaling, args.target_modules
    check("delta_w_scaling", type(scaling) in (int, float) and 0 < scaling < 1e30, "a number above 0")
    texts = type(modules) is list and all(type(name) is str for name in modules)
    check("target_modules", texts and 0 < len(modules) == len(set(modules)), "a list of different module names")
    return args


def _check_kind(args: _Args, adapter: Any, folder: Path) -> None:
    """Refuse by name what a native hypernetwork cannot represent."""
    peft_type = str(adapter.get("peft_type")).lower() if isinstance(adapter, dict) else ""
    if "vera" in (args.exp_setup.rpartition("_")[2], peft_type):
        what = "a hyper-VeRA network makes no LoRA adapters"
    elif args.encoder_type not in ("", "linear"):
        what = f"its task encoder is {args.encoder_type[:40]!r}, and only linear ones can be represented"
    elif args.autoreg_gen and not args.learnable_pos_emb:
        what = (
            "it tells ranks apart by rotary embeddings (autoreg_gen without learnable_pos_emb), and only learned ones "
            "can be represented"
        )
    elif args.z_scores and not args.factorized:
        what = "z-scores of weights that are not factorized (pred_z_score without factorized) cannot be represented"
    elif "SFR" in args.emb_model:
        what = f"{args.emb_model[:80]!r} reads descriptions inside an instruction, which cannot be represented"
    else:
        return
    raise UserError(f"{folder} cannot be imported: {what}.")


# ---- hypermod.pt ----


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict as `torch.save` writes it, mapped from the file, dense, and no larger than it."""
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise UserError(
            f"{path} is larger than {MAX_WEIGHTS_BYTES >> 30} GiB; it is not the kind of file it should be."
        )
    _check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the library raises many kinds; the reader needs one sentence
        raise UserError(f"{path} is damaged: it cannot be read as a state dict.") from error
    if not isinstance(state, Mapping) or not 0 < len(state) <= MAX_TENSORS:
        raise UserError(f"{path} holds no state dict; it is not the kind of file it should be.")
    total = 0
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path} holds {str(name)[:80]!r}, which is no tensor of a state dict.")
        bytes = tensor.numel() * tensor.element_size()
        total += bytes
        if bytes > tensor.untyped_storage().nbytes() or total > size:
            raise UserError(
                f"{path} is damaged: {name[:80]} claims to be {list(tensor.shape)}, more than the file holds."
            )
    return dict(state)


def _check_archive(path: Path) -> None:
    """Refuse what is no plain, uncompressed archive of tensors, before PyTorch reads it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UserError(f"{path} is compressed; torch.save writes tensors as they are, so it is damaged.")
            [pickle] = [entry for entry in entries if re.fullmatch(r"[^/]*/data\.pkl", entry.filename)]
            if pickle.file_size > MAX_PICKLE_BYTES or len(entries) > 2 * MAX_TENSORS:
                raise UserError(f"{path} holds far more than a state dict; it is not the kind of file it should be.")
            if flipped := archive.testzip():  # a mapped file's checksums are not looked at otherwise
                raise zipfile.BadZipFile(flipped)
            names = {str(value) for code, value, _ in pickletools.genops(archive.read(pickle)) if "GLOBAL" in code.name}
    except UserError:
        raise
    except Exception as error:  # what a damaged archive raises is as varied as the damage
        raise UserError(f"{path} is damaged: it is no whole file of torch.save (PyTorch 1.6 or newer).") from error
    if odd := sorted(name for name in names if not PLAIN.fullmatch(name)):
        what = odd[0][:80].replace(" ", ".")
        raise UserError(f"{path} was not read: a state dict of floats does not name {what}, and a pickle can run code.")


# ---- one into the other ----


def _config(
    args: _Args, adapter: dict[str, Any], state: dict[str, Tensor], order: list[str] | None, path: Path
) -> HyperLoRAConfig:
    """The native config; sizes that args.yaml does not say are read from the tensors."""
    rank, alpha = check_peft_config(adapter)
    names = args.target_modules
    if order is not None and sorted(order) != sorted(names):
        raise UserError(f"The order {','.join(order)} should hold each of {','.join(names)} once.")

    def size(name: str, dimension: int) -> int:
        if name not in state:
            raise UserError(f"{path} lacks {name}; it is not what {ARGS} describes.")
        if state[name].ndim <= dimension:
            raise UserError(f"{path}: {name} has the shape {list(state[name].shape)}, too few dimensions.")
        return state[name].shape[dimension]

    if "task_encoder.mlp.3.weight" in state:
        raise UserError(f"{path} cannot be imported: its task encoder is not linear, which cannot be represented.")
    d_emb = size("task_encoder.mlp.0.weight", 1)
    offset = any(name.startswith(OFFSET) and tensor.any() for name, tensor in state.items())
    base, embedder = _hub_id(args.model_dir), _hub_id(args.emb_model)
    one_hot = args.use_one_hot_task_emb
    return HyperLoRAConfig(
        head=args.head,
        target_modules={
            name: (size(f"{OFFSET}.A.{name}", 2), size(f"{OFFSET}.B.{name}", 1)) for name in order or names
        },
        num_layers=size("layer_depth_encoder.0.weight", 0),
        d_emb=d_emb,
        rank=rank,
        alpha=alpha,
        use_rslora=adapter.get("use_rslora", False),
        task_input="one_hot" if one_hot else "text",
        num_tasks=d_emb if one_hot else None,
        offset="factors" if offset and not args.z_scores and not args.scaled else "none",
        z_score=args.z_scores,
        latent_size=args.hypernet_latent_size,
        head_size=args.head_in_size,
        rank_embedding="through_mlp2" if args.head == "S" else "plain",
        module_order_assumed=order is None and len(names) > 1,
        embedder=embedder or LAST_TOKEN,
        embedder_revision=GTE_REVISION if embedder == GTE else None,
        base_model=base,
        chat_template=TRAINED.get(base),
        prompt_style="definition_input",
    )


def _hub_id(name: str) -> str | None:
    """The model's name, on the Hub where it is known; None for an empty one."""
    name = name.rstrip("/")
    last = name.rpartition("/")[2]
    return next((known for known in RELEASED if known.endswith(f"/{last}")), name) or None


def _convert(model: HyperLoRA, args: _Args, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The native state dict, without embeddings.

    Head biases become the A/B basis, or part of the offset or the mean where there is one; the scaling of ΔW goes into
    the heads, and the 1e-10 that is added to the standard deviation into it.
    """
    config, modules = model.config, model.config.target_modules
    unread = set(state)

    def take(name: str, *shape: int) -> Tensor:
        """That tensor in memory of its own, float32."""
        if name not in state:
            raise UserError(f"{path} lacks {name}; it is not what {ARGS} describes.")
        if tuple(state[name].shape) != shape:
            raise UserError(f"{path} does not fit {ARGS}: {name} is {list(state[name].shape)}, not {list(shape)}.")
        unread.discard(name)
        tensor = state[name].detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        check_finite(name, tensor, path)
        return tensor

    def factors(group: str) -> dict[str, tuple[Tensor, Tensor]]:
        r, layers = config.rank, config.num_layers
        return {
            module: (take(f"{group}.A.{module}", layers, r, d_in), take(f"{group}.B.{module}", layers, d_out, r))
            for module, (d_in, d_out) in modules.items()
        }

    native: dict[str, Tensor] = {}
    for name, parameter in model.network.state_dict().items():
        if prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
            native[f"network.{name}"] = take(PREFIXES[prefix] + name.removeprefix(prefix), *parameter.shape)
    task, site = config.latent_size // 2, config.latent_size // 4
    of_task, of_layer, of_module = native["network.mlp0.0.weight"].split([task, site, site], dim=1)
    native["network.mlp0.0.weight"] = torch.cat([of_task, of_module, of_layer], dim=1)  # natively in this order
    if config.head in ("M", "S"):
        latent = model.network.ab_norm.weight.shape[0]
        sides = [torch.stack([take(f"out_emb.{module}.{side}", latent) for side in "AB"]) for module in modules]
        native["network.ab_embedding"] = torch.stack(sides)

    scale, basis = 1 / math.sqrt(args.delta_w_scaling) if args.scaled else 1.0, {}
    for module, head in model.network.heads.items():
        native[f"network.heads.{module}.weight"] *= scale
        name = f"heads.{module}.bias"
        bias = take(name, head.out_features) * scale if name in state else torch.zeros(head.out_features)
        # As if each head had given it, for one task and one layer.
        sizes = {"L": (), "M": (2,), "S": (2, config.rank), "R": (config.rank,)}[config.head]
        basis[module] = [side[0, 0] for side in model.network.split(module, bias.expand(1, 1, *sizes, -1))]

    offset = factors(OFFSET)
    if config.z_score:
        mean, std = factors(MEAN), factors(STD)
    else:
        unread -= {name for name in unread if name.startswith((MEAN, STD))}
    for i, side in enumerate("AB"):
        for module in modules:
            bias, added = basis[module][i], offset[module][i]
            if config.z_score:
                deviation = std[module][i] + 1e-10
                native[f"std.{module}.{side}"] = deviation
                native[f"mean.{module}.{side}"] = mean[module][i] + bias * deviation + added
            elif config.offset == "factors":
                native[f"offset.{module}.{side}"] = added + bias
            else:
                native[f"network.basis_{side}.{module}"] = bias.clone(memory_format=torch.contiguous_format)
    if unread:
        raise UserError(
            f"{path} holds {sorted(unread)[0][:80]}, which a network as {ARGS} describes it does not have "
            f"({len(unread)} such tensors)."
        )
    return native
