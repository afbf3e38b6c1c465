"""Train a hypernetwork by reconstruction (Eq. 5): a task in, the A and B of that task's own LoRA out.

python -m training.recon --adapters DIR --output DIR [--tasks DIR] [--head M] [--loss factors]

The network predicts z-scores of each weight entry (App. D), so an offset on A and B (Eq. 6) would change nothing: it
moves the entries' means alone. There is none. Table 7's NEFTune has nothing to act on, as no token is embedded.
"""

import itertools
import json
import math
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.data import IterableDataset
from transformers import PrinterCallback, TrainingArguments

from hyperlora.base import load_base
from hyperlora.embedder import LAST_TOKEN, load_embedder
from hyperlora.errors import UserError
from hyperlora.files import write_atomic, writing
from hyperlora.generator import HyperLoRA
from training.parts.library import Library, pack
from training.parts.network import NetworkOptions, save, task_inputs, trained_descriptions, untrained
from training.parts.options import option, parse, run
from training.parts.trainer import (
    BatchTrainer,
    Progress,
    check_report_to,
    check_settings,
    checkpoint_step,
    last_checkpoint,
)
from training.tasks import Task, load_tasks

PIECE = 2**24
FREE = (  # what a resumed run may have otherwise
    "epochs", "max_steps", "piece", "targets_on_device", "save_every", "log_every", "report_to",
)  # fmt: skip
TINY = 1e-12  # under every norm and deviation that is divided by

Loss = Literal["factors", "delta"]


@dataclass
class ReconConfig(NetworkOptions):
    """The hypernetwork's shape, and the third column of Table 7. Rank, layers and modules are the library's."""

    prompt_style: Literal["input", "description_input"] = option(
        "input", "what the prompts of the LoRAs' training held"
    )
    loss: Literal["factors", "delta"] = option(
        "factors", "L1 on the z-scores of A and B (App. D), or Frobenius distance of dW (App. E)"
    )
    sides_apart: bool = option(
        False, "mean over A and over B apart, and then over modules, as in the public code, instead of over all weights"
    )
    sample_deviation: bool = option(
        False, "z-scores by the deviation of a sample, n - 1, as in the public code, instead of that of all LoRAs"
    )
    alpha: float = option(16.0, "LoRA alpha of the generated adapters; the targets' B are scaled to fit", above=0)
    use_rslora: bool = option(True, "scale by alpha / sqrt(r) rather than alpha / r")
    targets_per_step: int = option(0, "LoRAs compared in one step; 0: all of them", least=0)
    epochs: float = option(100_000.0, "passes over the library", above=0)
    max_steps: int = option(0, "optimizer steps instead of epochs, where above 0", least=0)
    learning_rate: float = option(1e-3, "highest learning rate, reached after the warm-up", least=0)
    warmup_fraction: float = option(
        0.1, "part of the steps in which the learning rate rises; then it falls to 0", least=0, most=1
    )
    max_grad_norm: float = option(1.0, "gradient norm above which it is scaled down", above=0)
    weight_decay: float = option(0.0, "AdamW's weight decay", least=0)
    bf16: bool = option(False, "bfloat16 autocast")
    piece: int = option(PIECE, "weights compared at once: more are faster and take more memory", least=1)
    targets_on_device: bool = option(False, "hold the library in the device's memory instead of reading it each step")
    save_every: int = option(1000, "steps between two checkpoints to resume from", least=1)
    log_every: int = option(100, "steps between two lines of progress", least=1)
    report_to: Literal["none", "tensorboard", "wandb"] = option("none", "where losses are drawn beside the terminal")


def build(
    library: Library, config: ReconConfig, tasks: Sequence[Task] | None = None, embedder=None, device: str = "cpu"
) -> HyperLoRA:
    """An untrained hypernetwork for the library: whatever the task, its adapter is the average of the library's.

    tasks: those of the library's LoRAs, whose descriptions stand for them where the task input is text. `embedder`: an
    object with `embed` and `d_emb`; loaded by its name, on the device, where it is None.
    """
    descriptions = []
    if config.task_input == "text":
        descriptions = [text for task in _in_order(library, tasks, config) for text in task.descriptions]
        if embedder is None:
            if config.embedder == LAST_TOKEN and not library.base_model:
                raise UserError("The LoRAs do not name their base model, whose last token was to be the task input.")
            base = None
            if config.embedder == LAST_TOKEN:
                base = load_base(library.base_model, library.base_revision, device=device)
            embedder = load_embedder(config.embedder, device=device, base=base)
    hyperlora = untrained(
        config,
        library.tasks,
        descriptions,
        embedder,
        target_modules=dict(library.target_modules),
        num_layers=library.num_layers,
        rank=library.rank,
        alpha=library.alpha,
        use_rslora=library.use_rslora,
        z_score=True,
        prompt_style=config.prompt_style,
        base_model=library.base_model,
        base_revision=library.base_revision,
    )
    hyperlora.set_z_score(*library.statistics(correction=int(config.sample_deviation)))
    return hyperlora


def _in_order(library: Library, tasks: Sequence[Task] | None, config: ReconConfig) -> list[Task]:
    """The task of each of the library's LoRAs, with the descriptions that training draws from."""
    by_name = {task.name: task for task in tasks or []}
    if missing := [name for name in library.tasks if name not in by_name]:
        raise UserError(
            f"The LoRA of the task {missing[0]} has no descriptions: give the task's file, or other inputs."
        )
    ordered = [by_name[name] for name in library.tasks]
    return [replace(task, descriptions=trained_descriptions(task, config)) for task in ordered]


class ReconModel(nn.Module):
    """Targets and task inputs -> loss, and the error per element in the scale of the weights.

    task_inputs: [inputs, d_emb] (or ids [tasks] for learned vectors), what `index` of a batch points into. At most
    `piece` weights are compared at a time, forward and backward. Only the hypernetwork is a submodule: the library
    belongs to no checkpoint.
    """

    def __init__(
        self,
        hyperlora: HyperLoRA,
        library: Library,
        task_inputs: Tensor,
        loss: Loss = "factors",
        piece: int = PIECE,
        sides_apart: bool = False,
    ):
        super().__init__()
        self.sides_apart = sides_apart
        self.hyperlora, self.library, self.piece = hyperlora, library, piece
        self.distance = self._factor_distance if loss == "factors" else self._delta_distance
        self.register_buffer("task_inputs", task_inputs, persistent=False)
        self.register_buffer("norms", library.delta_norms() if loss == "delta" else torch.empty(0), persistent=False)
        sizes = hyperlora.config.target_modules.values()
        self.module_count, self.sites = len(sizes), len(sizes) * library.num_layers
        self.elements = library.rank * library.num_layers * sum(map(sum, sizes))  # of one LoRA

    def forward(self, targets: Tensor, index: Tensor, count: Tensor) -> dict[str, Tensor]:
        """targets: [t] rows of the library; index: [t] their task inputs; count: [] what sums are divided by.

        Gives {"loss", "error"}, both means over the targets where count is t: for "factors" the L1 distance per element
        of A and B as z-scores (with `sides_apart` the mean of that of each module's A and B), and as weights; for
        "delta" the Frobenius distance of each ΔW relative to the library's norm at that place, and the root mean square
        error of its elements, averaged over places.
        """
        features = self.hyperlora.network.features(self.task_inputs[index])
        rows = targets.tolist()
        if torch.is_grad_enabled():
            heads = [head.weight for head in self.hyperlora.network.heads.values()]
            loss, errors = _InPieces.apply(self, rows, features, *heads)
        else:
            loss, errors, _ = self.compare(rows, features)
        return {"loss": loss / count, "error": errors.sum() / count}

    def compare(
        self, rows: Sequence[int], features: Tensor, heads: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Loss [] summed over targets, errors [t], and the loss's gradients at the features and the heads, if given."""
        network, differentiate = self.hyperlora.network, heads is not None
        loss = torch.zeros((), dtype=network.task_encoder[0].weight.dtype, device=features.device)
        errors = loss.new_zeros(len(rows))
        gradients = [torch.empty_like(features), *map(torch.zeros_like, heads)] if differentiate else []
        for i, (module, sizes) in enumerate(self.hyperlora.config.target_modules.items()):
            for some, layers in _pieces(len(rows), self.library.num_layers, self.library.rank * sum(sizes), self.piece):
                with torch.set_grad_enabled(differentiate):
                    part = features[some, i, layers].detach().requires_grad_(differentiate)
                    each, error = self.distance(module, layers, rows[some], *network.factors(module, part))
                if differentiate:
                    gradients[0][some, i, layers], of_head = torch.autograd.grad(each, [part, heads[i]])
                    gradients[1 + i] += of_head
                    del of_head  # else there were two of them in the next piece
                loss += each.detach()
                errors[some] += error
        return loss, errors, gradients

    def _factor_distance(
        self, module: str, layers: slice, rows: Sequence[int], A: Tensor, B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """L1 of the z-scores A [n, layers, r, d_in] and B [n, layers, d_out, r] (Eq. 5): loss [], error [n]."""
        means, stds = self.hyperlora.mean[module], self.hyperlora.std[module]
        target_A, target_B = self.library.read(module, layers, rows)
        # B as Bᵀ, as it lies in memory; every pass over these tensors counts
        sides = (A, target_A, means.A, stds.A), (B.mT, target_B.mT, means.B.mT, stds.B.mT)
        loss, error = 0.0, 0.0
        for z, target, mean, std in sides:
            mean, std = mean[layers], std[layers]
            distance = torch.addcmul(z, target.to(z.device) - mean, -1 / std.clamp_min(TINY)).abs()
            size = self.library.rank * self.library.num_layers * z.shape[-1]
            loss = loss + distance.sum() / (2 * self.module_count * size if self.sides_apart else self.elements)
            with torch.autocast(z.device.type, enabled=False):
                error = error + distance.detach().flatten(1) @ std.flatten()
        return loss, error / self.elements

    def _delta_distance(
        self, module: str, layers: slice, rows: Sequence[int], A: Tensor, B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Frobenius distance of ΔW = s B A from the targets' (App. E), through r x r products: loss [], error [n].

        With A' = A + a, B' = B + b the difference B'A' - BA is bA' + Ba, whose terms are small where the factors are
        close, so that no large numbers cancel.
        """
        mean, std = self.hyperlora.mean[module], self.hyperlora.std[module]
        with torch.autocast(A.device.type, enabled=False):
            A, B = A * std.A[layers] + mean.A[layers], B * std.B[layers] + mean.B[layers]
            target_A, target_B = (side.to(A.device, A.dtype) for side in self.library.read(module, layers, rows))
            a, b = A - target_A, B - target_B
            squares = (b.mT @ b) * (A @ A.mT) + 2 * (b.mT @ target_B) * (A @ a.mT)
            squares = squares + (target_B.mT @ target_B) * (a @ a.mT)
            squares = self.library.scale**2 * squares.sum((-1, -2))  # [n, layers]
            place = list(self.hyperlora.config.target_modules).index(module)
            norms = self.norms[place, layers].clamp_min(TINY)
            least = (1e-6 * norms).square()  # below it the root has no slope to infinity
            distance = squares.maximum(least).sqrt()
        error = distance.detach().sum(1) / math.sqrt(math.prod(self.hyperlora.config.target_modules[module]))
        return (distance / norms).sum() / self.sites, error / self.sites


class _InPieces(torch.autograd.Function):
    """`compare` as one node of the graph: the gradients come with the values, and only they are kept.

    So a hypernetwork trains under Trainer, DDP and autocast as with any other loss.
    """

    @staticmethod
    def forward(ctx, model: ReconModel, rows: list[int], features: Tensor, *heads: Tensor) -> tuple[Tensor, Tensor]:
        loss, errors, ctx.gradients = model.compare(rows, features, heads)
        ctx.mark_non_differentiable(errors)
        return loss, errors

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(gradient.mul_(slope) for gradient in gradients)


def _pieces(targets: int, layers: int, size: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Slices of targets and layers, `size` weights in each layer of a target: at most `most` weights, or one layer."""
    room = max(1, most // size)
    wide, deep = min(targets, room), max(1, room // targets)
    for layer, target in itertools.product(range(0, layers, deep), range(0, targets, wide)):
        yield slice(target, target + wide), slice(layer, min(layer + deep, layers))


@torch.no_grad()
def errors(hyperlora: HyperLoRA, library: Library, task_inputs: Tensor, loss: Loss = "factors") -> Tensor:
    """The error per element of each of the library's LoRAs [n], in the scale of the weights, without dropout.

    task_inputs: one a LoRA, [n, d_emb], or ids [n]. "factors": L1 over A and B, what Fig. 3 shows. "delta": root mean
    square over the elements of a ΔW, averaged over modules and layers.
    """
    device, training = hyperlora.network.task_encoder[0].weight.device, hyperlora.training
    model = ReconModel(hyperlora.eval(), library, task_inputs, loss).to(device)
    parts = torch.arange(len(library)).split(64)  # their features are in memory at a time
    features = (hyperlora.network.features(model.task_inputs[part.to(device)]) for part in parts)
    found = [model.compare(part.tolist(), x)[1].cpu() for part, x in zip(parts, features, strict=True)]
    hyperlora.train(training)
    return torch.cat(found)


class Draws(IterableDataset):
    """Endless steps, the same for the same seed, from any step on; a process gets its share of each step's targets.

    choices: for each target the task inputs that a draw takes one of. A target comes again when all others have come.
    Yields {"targets" [t], "index" [t], both int64, "count" [] float: the mean number of targets a process}.
    """

    def __init__(self, choices: Sequence[Sequence[int]], targets_per_step: int, seed: int = 0, start: int = 0):
        self.choices, self.seed, self.start = choices, seed, start
        self.size = min(targets_per_step or len(choices), len(choices))
        self.process, self.processes = 0, 1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step in itertools.count(self.start):
            begin, n = step * self.size, len(self.choices)
            rounds = [self._order(i) for i in range(begin // n, (begin + self.size - 1) // n + 1)]
            targets = list(itertools.chain(*rounds))[begin % n :][: self.size]
            draw = random.Random(f"{self.seed} step {step}")
            pairs = sorted((target, draw.choice(self.choices[target])) for target in targets)
            share = torch.tensor(pairs[self.process :: self.processes]).view(-1, 2)
            yield {"targets": share[:, 0], "index": share[:, 1], "count": torch.tensor(self.size / self.processes)}

    def _order(self, number: int) -> list[int]:
        return random.Random(f"{self.seed} round {number}").sample(range(len(self.choices)), len(self.choices))


class ReconTrainer(BatchTrainer):
    """Logs the error per element beside the loss, as a mean over the same steps."""

    error, steps = 0.0, 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.error, self.steps = self.error + outputs["error"].detach(), self.steps + 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.steps:
            logs["error"] = self.accelerator.gather(self.error / self.steps).mean().item()
            self.error, self.steps = 0.0, 0
        super().log(logs, start_time)


def train(
    hyperlora: HyperLoRA,
    library: Library,
    config: ReconConfig,
    output: str | Path,
    tasks: Sequence[Task] | None = None,
    resume: bool = False,
    device: str = "cpu",
) -> list[dict[str, float]]:
    """Train `hyperlora` in place on the library and save it in `output`; gives the Trainer's log.

    Each step draws one of a task's descriptions. OUTPUT/recon.json says which task input is whose, and each LoRA's
    error per element. `resume` goes on from the last whole checkpoint in OUTPUT/checkpoints, with the same losses as a
    run that never stopped. Raises `UserError` where a resumed run had other settings or LoRAs, or writing fails.
    """
    output, checkpoints = Path(output), Path(output) / "checkpoints"
    text = hyperlora.config.task_input == "text"
    own = _in_order(library, tasks, config) if text else library.names
    inputs, choices = task_inputs(hyperlora, own, "descriptions")
    described = [task.descriptions for task in own] if text else None
    draws = Draws(choices, config.targets_per_step, config.seed)
    steps = config.max_steps or math.ceil(config.epochs * len(library) / draws.size)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=draws.size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(config.warmup_fraction * steps),
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        bf16=config.bf16,
        use_cpu=device == "cpu",
        seed=config.seed,
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=config.log_every,
        remove_unused_columns=False,
        ignore_data_skip=True,  # the draws start where the checkpoint stopped
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # they never change, and the task inputs are large
        disable_tqdm=True,
        report_to=config.report_to,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # without a launcher the Trainer would copy the model to every GPU
    draws.process, draws.processes = process, processes = arguments.process_index, arguments.world_size
    if draws.size < processes:
        raise UserError(f"{draws.size} targets a step cannot be shared by {processes} processes: use fewer.")
    checkpoint = last_checkpoint(checkpoints, resume and process == 0)
    if checkpoint and not resume:
        raise UserError(f"{checkpoints} holds an earlier run: resume it, or take another output folder.")
    if checkpoint:
        draws.start = checkpoint_step(checkpoint)
    settings = {field.name: getattr(config, field.name) for field in fields(ReconConfig) if field.name not in FREE}
    settings["library"] = f"{len(library)} LoRAs ({zlib.crc32(json.dumps(library.names).encode()):08x})"
    settings["weights of the LoRAs"] = f"{library.checksum():08x}"
    settings["descriptions"] = f"{zlib.crc32(json.dumps(described).encode()):08x}"
    check_settings(checkpoints, settings, bool(checkpoint), process == 0)

    if config.targets_on_device:
        library.to(arguments.device)
    model = ReconModel(hyperlora, library, inputs, config.loss, config.piece, config.sides_apart)
    trainer = ReconTrainer(model, arguments, train_dataset=draws, callbacks=[Progress()])
    trainer.remove_callback(PrinterCallback)
    if processes > 1:
        set_seed(config.seed, device_specific=True)  # else all processes would draw the same dropout
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if process == 0:
        first = inputs[[ids[0] for ids in choices]]
        found = {kind: errors(hyperlora, library, first, kind) for kind in ("factors", "delta")}
        save(hyperlora.eval().to("cpu"), output)
        _report(output / "recon.json", library, found)
    return trainer.state.log_history


def _report(path: Path, library: Library, found: dict[Loss, Tensor]) -> None:
    """{"error", "delta_error": means, "targets": [{"name", "task", "error", "delta_error"}]}, in the inputs' order."""
    names = zip(library.names, library.tasks, *(found[kind].tolist() for kind in ("factors", "delta")), strict=True)
    targets = [dict(zip(("name", "task", "error", "delta_error"), values, strict=True)) for values in names]
    means = {"error": found["factors"].mean().item(), "delta_error": found["delta"].mean().item()}
    print(
        f"Mean absolute error of an element of A and B: {means['error']:.3g}, root mean square of ΔW's elements: "
        f"{means['delta_error']:.3g}.",
        flush=True,
    )
    with writing(path, "free some space, then resume"):
        write_atomic(path, (json.dumps(means | {"targets": targets}, indent=1, ensure_ascii=False) + "\n").encode())


@dataclass(kw_only=True)
class Options(ReconConfig):
    """What `python -m training.recon` takes beside the settings."""

    adapters: str = option(help="folder of PEFT LoRAs of one base, as training.lora writes it or without an index")
    output: str = option(help="folder for the library's file, the checkpoints and, at the end, the trained HyperLoRA")
    tasks: str | None = option(None, "folder of task files; only the LoRAs of these tasks are reconstructed")
    resume: bool = option(False, "go on from the last checkpoint in the output folder")
    device: str = option("cpu", "cpu or cuda (CUDA_VISIBLE_DEVICES says which GPUs)")


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    check_report_to(options.report_to)
    tasks = load_tasks(options.tasks) if options.tasks else None
    if options.task_input == "text" and tasks is None:
        raise UserError("The task input text needs --tasks, whose descriptions it reads; or use --task_input one_hot.")
    names = {task.name for task in tasks} if tasks else None
    state = PartialState(cpu=options.device == "cpu")
    with state.main_process_first():  # one process packs, the others find the file
        path = Path(options.output) / "library.safetensors"
        library = pack(options.adapters, path, names, options.alpha, options.use_rslora)
    state.print(f"Reconstructing {len(library)} LoRAs of rank {library.rank}.", flush=True)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU that has it: its ten bits suffice for a z-score
    hyperlora = build(library, options, tasks, device=str(state.device))
    train(hyperlora, library, options, options.output, tasks, options.resume, options.device)


if __name__ == "__main__":
    run(main)
