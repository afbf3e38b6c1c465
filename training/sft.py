"""Train a hypernetwork by supervised fine-tuning (Eq. 4): text in, adapter out, loss through the frozen base model.

python -m training.sft --tasks DIR --base DIR --output DIR [--offset_adapter DIR] [--held_out DIR --eval_every N]
accelerate launch --num_processes N -m training.sft --device cuda ... does the same with N GPUs.

OUTPUT gets the trained HyperLoRA, at each checkpoint as far as it is, and OUTPUT/best the one with the lowest
validation loss so far, both as `HyperLoRA.from_pretrained` reads them; OUTPUT/checkpoints what `--resume` needs,
optimizer and random states included.

The loss of an optimizer step is the mean over all answer tokens of its batch_size x gradient_accumulation_steps x
processes rows, and those rows depend on that product alone: a step is the same however it is cut, up to rounding.
"""

import itertools
import json
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel, PrinterCallback, SchedulerType, TrainingArguments, get_scheduler

from hyperlora.adapted import AdaptedModel
from hyperlora.base import Precision, load_base, origin, precision
from hyperlora.embedder import load_embedder
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from hyperlora.prompt import own_template
from training.parts.batches import IGNORE, Batches, row_length
from training.parts.digest import base_digest, tensor_digest
from training.parts.loss import answer_loss, check_trainable, training_mode
from training.parts.muon import MuonAdamW
from training.parts.network import NetworkOptions, save, task_inputs, trained_descriptions, untrained
from training.parts.options import option, parse, run
from training.parts.rows import RowOptions, sources, task_weights
from training.parts.trainer import (
    BatchTrainer,
    KeepBest,
    KeepLast,
    Progress,
    check_report_to,
    check_settings,
    checkpoint_step,
    last_checkpoint,
)
from training.tasks import Task, load_tasks

FREE = (  # what a resumed run may have otherwise; of the batch sizes the product counts
    "batch_size", "gradient_accumulation_steps", "epochs", "max_steps", "gradient_checkpointing",
    "save_every", "eval_every", "eval_batches", "log_every", "report_to",
)  # fmt: skip
SHAPE = (  # what a hypernetwork and the one that it goes on from have in common
    "head", "target_modules", "num_layers", "d_emb", "rank", "alpha", "use_rslora", "task_input", "num_tasks",
    "task_names", "offset", "z_score", "latent_size", "head_size", "rank_embedding", "embedder", "prompt_style",
)  # fmt: skip


@dataclass
class SFTConfig(NetworkOptions, RowOptions):
    """The adapters' shape, and the second column of Table 7."""

    rank: int = option(8, "rank r of the adapters", least=1)
    alpha: float = option(16.0, "LoRA alpha", above=0)
    use_rslora: bool = option(True, "scale by alpha / sqrt(r) rather than alpha / r")
    offset: Literal["none", "factors", "delta"] = option("factors", "offset added to A and B (Eq. 6) or to dW (Eq. 8)")
    embedding_noise: float = option(
        0.0, "standard deviation of noise on the embedding, whose entries are about 1", least=0
    )
    label_smoothing: float = option(
        0.0, "part of each answer token's target that is spread over the vocabulary (public code: 0.1)", least=0, most=1
    )
    weight_l2: float = option(
        0.0, "so much times the mean square of A and of B, summed over modules, is added (public code: 1e-3)", least=0
    )
    equal_rows: bool = option(
        False, "each row counts alike, as in the public code, whatever its answer's length, instead of each token"
    )
    lora_dropout: float = option(0.05, "dropout on the adapter's input", least=0, most=0.99)
    batch_size: int = option(4, "examples in one forward pass", least=1, most=4096)
    gradient_accumulation_steps: int = option(16, "forward passes to an optimizer step", least=1, most=4096)
    longest: int = option(0, "tokens of a row; longer ones are left out; 0: all that the base model takes", least=0)
    epochs: float = option(5.0, "passes over all examples (Table 7: 5 for 256 tasks, 80 for 16)", above=0)
    max_steps: int = option(0, "optimizer steps instead of epochs, where above 0", least=0)
    optimizer: Literal["adamw", "muon"] = option(
        "adamw", "AdamW as in Table 7, or Muon for the hypernetwork's matrices and AdamW for the rest"
    )
    learning_rate: float = option(1e-4, "highest learning rate, reached after the warm-up", least=0)
    warmup_fraction: float = option(0.1, "part of the steps in which the learning rate rises", least=0, most=1)
    schedule: Literal["linear", "constant"] = option(
        "linear", "after that the rate falls to 0 all the way, or only in the last tenth of the steps"
    )
    max_grad_norm: float = option(1.0, "gradient norm above which it is scaled down", above=0)
    weight_decay: float = option(0.0, "AdamW's weight decay", least=0)
    neftune_alpha: float = option(5.0, "NEFTune's noise on the token embeddings; 0: none", least=0)
    bf16: bool = option(False, "bfloat16 autocast")
    gradient_checkpointing: bool = option(False, "compute the base's layers twice instead of keeping what they hold")
    compile: bool = option(False, "torch.compile the base's layers: less time where elementwise work takes much of it")
    save_every: int = option(500, "steps between two checkpoints to resume from", least=1)
    eval_every: int = option(0, "steps between two validations; 0: none", least=0)
    eval_batches: int = option(8, "batches of a validation", least=1)
    log_every: int = option(50, "steps between two lines of progress", least=1)
    report_to: Literal["none", "tensorboard", "wandb"] = option("none", "where losses are drawn beside the terminal")


def build(
    adapted: AdaptedModel,
    tokenizer,
    tasks: Sequence[Task],
    config: SFTConfig,
    offset: Adapter | None = None,
    embedder=None,
    init: HyperLoRA | None = None,
) -> HyperLoRA:
    """A hypernetwork for this base with its offset and the tasks' training descriptions in it.

    Untrained, its adapters at step 0 are `offset` exactly (Eq. 6, 8). With `init` they are those of that hypernetwork,
    whose weights and offset it has. `embedder`: an object with `embed` and `d_emb`; loaded by its name where it is
    None. Raises `UserError` where `init` has another form than the settings ask for.
    """
    if init is not None and offset is not None:
        raise UserError("A hypernetwork that goes on from another has that one's offset: leave offset_adapter away.")
    if init is None and (offset is None) != (config.offset == "none"):
        raise UserError(f"Offset {config.offset!r} " + ("needs" if offset is None else "takes no") + " offset adapter.")
    descriptions = []
    base_model, base_revision = origin(adapted.model)
    if config.task_input == "text":
        device = str(adapted.model.get_input_embeddings().weight.device)
        embedder = embedder or load_embedder(config.embedder, device=device, base=(adapted.model, tokenizer))
        descriptions = [text for task in tasks for text in trained_descriptions(task, config)]
    hyperlora = untrained(
        config,
        [task.name for task in tasks],
        descriptions,
        embedder,
        target_modules=dict(adapted.target_modules),
        num_layers=adapted.num_layers,
        rank=config.rank,
        alpha=config.alpha,
        use_rslora=config.use_rslora,
        offset=config.offset,
        prompt_style=config.prompt_style,
        base_model=base_model,
        base_revision=base_revision,
        chat_template=own_template(tokenizer),
    )
    if offset is not None:
        hyperlora.set_offset(offset)
    if init is not None:
        _go_on_from(hyperlora, init)
    return hyperlora


def _go_on_from(hyperlora: HyperLoRA, init: HyperLoRA) -> None:
    """Take another's weights and offset, in place; `UserError` where it has another form."""
    for field in fields(hyperlora.config):
        mine, other = getattr(hyperlora.config, field.name), getattr(init.config, field.name)
        if field.name in SHAPE and mine != other:
            raise UserError(f"init was trained with {field.name} {other!r}, and this run has {mine!r}: use the same.")
    hyperlora.config.trained_tokens = init.config.trained_tokens
    state = {name: tensor for name, tensor in init.state_dict().items() if name != "embeddings"}
    hyperlora.load_state_dict(state, strict=False)


def trained_tasks(tasks: Sequence[Task], config: SFTConfig) -> list[Task]:
    """The tasks with training examples, each with the descriptions that it is trained with.

    Raises `UserError` where there are none, a description is missing or, where tasks are numbers, one has no examples:
    without it the numbers of those behind it would be others.
    """
    if empty := [task.name for task in tasks if not task.train and config.task_input != "text"]:
        raise UserError(f"The task {empty[0]!r} has no training examples: give it some, or leave it away.")
    found = [replace(task, descriptions=trained_descriptions(task, config)) for task in tasks if task.train]
    if not found:
        raise UserError("None of the tasks has training examples.")
    return found


class SFTModel(nn.Module):
    """Batch -> loss: the batch's descriptions become adapters, and the frozen base answers with them.

    task_inputs: [descriptions, d_emb] (or ids [tasks] for learned vectors), what `index` of a batch points into.
    Only the hypernetwork is a submodule: the base belongs to no checkpoint.
    """

    def __init__(
        self,
        hyperlora: HyperLoRA,
        adapted: AdaptedModel,
        task_inputs: Tensor,
        config: SFTConfig | None = None,
        step_rows: int = 0,
    ):
        """step_rows: the rows of an optimizer step, over all passes and processes."""
        super().__init__()
        self.hyperlora = hyperlora
        self.adapted = adapted
        self.config = config or SFTConfig()
        self.step_rows = step_rows
        self.register_buffer("task_inputs", task_inputs, persistent=False)

    def train(self, mode: bool = True) -> "SFTModel":
        self.adapted.model.train(mode)  # for the adapter's dropout and NEFTune
        return super().train(mode)

    accepts_loss_kwargs = True  # the Trainer then passes `num_items_in_batch`

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        index: Tensor,
        attention_mask: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """input_ids, labels: [b, t]; index: [b] -> {"loss"}. Each description of the batch is generated once.

        The mask is not read (see `Batches`). The loss is the mean over the batch's answer tokens or, with
        `num_items_in_batch`, the batch's part of the mean over so many: the step's, over all passes and processes; with
        `equal_rows` over its rows. Label smoothing and the squares of the weights are a training's alone.
        """
        config = self.config
        unique, rows = index.unique(return_inverse=True)
        task_input = self.task_inputs[unique]
        if self.training and config.embedding_noise:
            task_input = task_input + config.embedding_noise * torch.randn_like(task_input)
        factors = self.hyperlora.factors(task_input)
        smoothing = config.label_smoothing if self.training else 0.0
        with self.adapted.use_factors(factors, rows, self.hyperlora.scale):
            losses = answer_loss(self.adapted.model, input_ids, labels, smoothing)
        tokens = (labels[:, 1:] != IGNORE).sum(1)
        step_rows = len(rows) if num_items_in_batch is None else self.step_rows
        if config.equal_rows:
            loss = (losses.sum(1) / tokens).sum() / step_rows
        else:
            loss = losses.sum() / (tokens.sum() if num_items_in_batch is None else num_items_in_batch)
        if self.training and config.weight_l2:
            squares = sum(side.square().mean((1, 2, 3)) for pair in factors.values() for side in pair)  # [descriptions]
            loss = loss + config.weight_l2 * squares[rows].sum() / step_rows
        return {"loss": loss}


def train(
    hyperlora: HyperLoRA,
    adapted: AdaptedModel,
    tokenizer,
    tasks: Sequence[Task],
    config: SFTConfig,
    output: str | Path,
    resume: bool = False,
    held_out: Sequence[Task] | None = None,
) -> list[dict[str, float]]:
    """Train `hyperlora` in place on the tasks' `train` examples and save it in `output`; gives the Trainer's log.

    Tasks are drawn evenly, and each example draws one of its task's descriptions. `resume` goes on from the last whole
    checkpoint in OUTPUT/checkpoints, with the same data, noise and losses as a run that never stopped.

    With `eval_every` there is a validation loss: of `held_out` tasks with all their descriptions or, where there are
    none, of the test examples of `tasks` with unseen descriptions. OUTPUT/best holds the HyperLoRA of the lowest one.
    Raises `UserError` where nothing can be trained or written, or a resumed run had other settings, tasks, base,
    target modules or offset.
    """
    output, checkpoints = Path(output), Path(output) / "checkpoints"
    check_trainable(adapted.model, config.gradient_checkpointing, config.compile)  # before anything is written
    tasks = trained_tasks(tasks, config)
    inputs, choices = task_inputs(hyperlora, tasks, "descriptions")
    pad, accumulation = tokenizer.pad_token_id, config.gradient_accumulation_steps
    device = adapted.model.get_input_embeddings().weight.device
    checked = _validation_tasks(hyperlora, tasks, held_out) if config.eval_every else []
    if config.eval_every and not checked:
        raise UserError(
            "There is nothing to validate on: eval_every needs held_out tasks or, for tasks that are read, "
            '"eval_descriptions" and "test" examples of those that are trained on.'
        )
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        bf16=config.bf16,
        use_cpu=device.type == "cpu",
        seed=config.seed,
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=config.log_every,
        eval_strategy="steps" if checked else "no",
        eval_steps=config.eval_every or None,
        metric_for_best_model="loss" if checked else None,
        greater_is_better=False,
        prediction_loss_only=True,
        label_names=["labels"],
        remove_unused_columns=False,
        ignore_data_skip=True,  # the batches start where the checkpoint stopped
        include_num_input_tokens_seen="non_padding",
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # they never change, and the task inputs are large
        disable_tqdm=True,
        report_to=config.report_to,
    )
    if (arguments.device.type, arguments.device.index or 0) != (device.type, device.index or 0):
        raise UserError(
            f"The base model is on {device} and training would be on {arguments.device}: say cuda, and choose the GPU "
            "with CUDA_VISIBLE_DEVICES."
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # without a launcher the Trainer would copy the model to every GPU
    process, processes = arguments.process_index, arguments.world_size
    longest = row_length(adapted.model, config.longest)
    examples, rows = sources(tokenizer, tasks, config, longest, say=process == 0)
    step_rows = config.batch_size * accumulation * processes
    steps = config.max_steps or math.ceil(config.epochs * sum(map(len, examples)) / step_rows)
    arguments.max_steps, arguments.warmup_steps = steps, round(config.warmup_fraction * steps)
    if config.schedule == "constant":
        arguments.lr_scheduler_type = SchedulerType.WARMUP_STABLE_DECAY
        arguments.lr_scheduler_kwargs = {"num_decay_steps": math.ceil(steps / 10), "decay_type": "linear"}
    batches = Batches(
        examples,
        choices,
        config.batch_size,
        pad,
        config.seed,
        passes=accumulation,
        process=process,
        processes=processes,
        weights=task_weights(tasks, config.shares),
        rows=rows,
    )
    checkpoint = last_checkpoint(checkpoints, resume and process == 0)
    if checkpoint and not resume:
        raise UserError(f"{checkpoints} holds an earlier run: resume it, or take another output folder.")
    if checkpoint:
        batches.start = checkpoint_step(checkpoint) * accumulation
    settings = {field.name: getattr(config, field.name) for field in fields(SFTConfig) if field.name not in FREE}
    settings["rows of an optimizer step"] = step_rows
    settings |= _inputs(hyperlora, adapted, tasks)
    check_settings(checkpoints, settings, bool(checkpoint), process == 0)

    validation = None
    if checked:
        shown = [replace(task, descriptions=task.eval_descriptions) for task in checked]
        tests, rows = sources(tokenizer, shown, config, longest, "test", say=process == 0)
        unseen, unseen_choices = task_inputs(hyperlora, checked, "eval_descriptions")
        unseen_choices = [[len(inputs) + i for i in part] for part in unseen_choices]
        inputs = torch.cat([inputs, unseen])
        count = math.ceil(config.eval_batches / processes) * processes  # as many in each process
        drawn = itertools.islice(Batches(tests, unseen_choices, config.batch_size, pad, rows=rows), count)
        validation = list(drawn)[process::processes]

    optimizers = None, None
    if config.optimizer == "muon":
        linears = [part.weight for part in hyperlora.network.modules() if isinstance(part, nn.Linear)]
        optimizer = MuonAdamW(hyperlora, linears, config.learning_rate, config.weight_decay)
        schedule = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            arguments.warmup_steps,
            steps,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
        optimizers = optimizer, schedule
    before_tokens = hyperlora.config.trained_tokens or 0

    def keep(folder: Path) -> None:
        hyperlora.config.trained_tokens = before_tokens + int(trainer.state.num_input_tokens_seen)
        save(hyperlora, folder)

    trainer = BatchTrainer(
        SFTModel(hyperlora, adapted, inputs, config, step_rows),
        arguments,
        train_dataset=batches,
        eval_dataset=validation,
        optimizers=optimizers,
        callbacks=[Progress(), KeepBest(lambda: keep(output / "best")), KeepLast(lambda: keep(output))],
    )
    trainer.remove_callback(PrinterCallback)
    if processes > 1:
        set_seed(config.seed, device_specific=True)  # else all processes would draw the same noise
    adapted.lora_dropout, before = config.lora_dropout, adapted.lora_dropout
    recomputing = adapted.recomputing if config.gradient_checkpointing else None
    try:
        with training_mode(adapted.model, config.neftune_alpha, recomputing, config.compile):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        adapted.lora_dropout = before
    hyperlora.eval().to("cpu")
    if process == 0:
        keep(output)
    return trainer.state.log_history


def _inputs(hyperlora: HyperLoRA, adapted: AdaptedModel, tasks: Sequence[Task]) -> dict[str, str]:
    """What a resumed run must have been given again, in short: the tasks and the offset as a checksum."""
    names, content = json.dumps([task.name for task in tasks]), 0
    for task in tasks:
        content = zlib.crc32(json.dumps([task.descriptions, task.train]).encode(), content)
    return {
        "tasks": f"{len(tasks)} tasks ({zlib.crc32(names.encode()):08x})",
        "descriptions and examples": f"{content:08x}",
        "content of the base": base_digest(adapted.model),
        "target modules": ", ".join(adapted.target_modules),
        "offset adapter": "none" if hyperlora.offset is None else tensor_digest(hyperlora.offset.buffers()),
    }


def _validation_tasks(hyperlora: HyperLoRA, tasks: Sequence[Task], held_out: Sequence[Task] | None) -> list[Task]:
    """What is validated on: `test` examples with `eval_descriptions`."""
    if not held_out:
        text = hyperlora.config.task_input == "text"
        return [task for task in tasks if task.test and task.eval_descriptions] if text else []
    if hyperlora.config.task_input != "text":
        raise UserError(f"Task input {hyperlora.config.task_input!r} knows no held-out tasks: leave held_out away.")
    if both := {task.name for task in tasks} & {task.name for task in held_out}:
        raise UserError(f"The task {min(both)!r} is trained on and held out: take it out of one of the two folders.")
    texts = [task.descriptions + task.eval_descriptions for task in held_out]
    if bare := [task.name for task, own in zip(held_out, texts, strict=True) if not own]:
        raise UserError(f"The held-out task {bare[0]!r} has no descriptions: give it some, or leave it away.")
    return [
        replace(task, test=task.test or task.train, descriptions=own, eval_descriptions=own)
        for task, own in zip(held_out, texts, strict=True)
    ]


def shard(model: PreTrainedModel, device: torch.device, processes: int) -> None:
    """Split a frozen base over all processes (FSDP2): each holds its part of every layer, and a layer is put together
    where it is used. The hypernetwork stays whole in each process; its gradients are averaged by DDP.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for module in list(model.modules()):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


@dataclass(kw_only=True)
class Options(SFTConfig):
    """What `python -m training.sft` takes beside the settings."""

    tasks: str = option(help="folder of task files")
    base: str = option(help="the base model: folder or Hub id")
    output: str = option(help="folder for the checkpoints and, at the end, the trained HyperLoRA")
    init: str | None = option(None, "a trained HyperLoRA to go on from, with a new optimizer, instead of from nothing")
    offset_adapter: str | None = option(None, "PEFT folder of the multi-task or average LoRA that is the offset")
    held_out: str | None = option(None, "folder of tasks that are not trained on, for the validation")
    target_modules: str = option("q_proj,v_proj", "names of the adapted linears, with commas between")
    base_dtype: Precision = option("float32", "how the frozen base is held")
    shard_base: bool = option(False, "split the base over all processes instead of a copy in each (FSDP)")
    resume: bool = option(False, "go on from the last checkpoint in the output folder")
    device: str = option("cpu", "cpu or cuda (CUDA_VISIBLE_DEVICES says which GPUs)")


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    check_report_to(options.report_to)
    if options.held_out and not options.eval_every:
        raise UserError("held_out needs eval_every: how many steps lie between two validations.")
    tasks = load_tasks(options.tasks)
    trained_tasks(tasks, options)  # what is wrong with them is said before a large base is loaded
    held_out = load_tasks(options.held_out) if options.held_out else None
    offset = Adapter.from_pretrained(options.offset_adapter) if options.offset_adapter else None
    model, tokenizer = _load_base(options)
    adapted = AdaptedModel(model, options.target_modules.split(","))
    init = HyperLoRA.from_pretrained(options.init) if options.init else None
    hyperlora = build(adapted, tokenizer, tasks, options, offset, init=init)
    train(hyperlora, adapted, tokenizer, tasks, options, options.output, options.resume, held_out)


def _load_base(options: Options) -> tuple[PreTrainedModel, object]:
    """The base on this process's device, or its part of it."""
    state = PartialState(cpu=options.device == "cpu")
    if state.num_processes == 1 and os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ:
        raise UserError(
            "accelerate launch --cpu starts one process whatever --num_processes says, unless there is MPI: use "
            "--config_file training/configs/accelerate-2-cpus.yaml instead of --cpu."
        )
    held = precision(options.base_dtype)
    if options.shard_base:
        if state.num_processes == 1:
            raise UserError("shard_base needs several processes: accelerate launch --num_processes N -m training.sft.")
        if held["quantize"]:
            raise UserError(f"shard_base takes a base in float32 or bfloat16, not {options.base_dtype}.")
        model, tokenizer = load_base(options.base, **held)
        shard(model, state.device, state.num_processes)
        return model, tokenizer
    device = options.device
    if device == "cuda" and state.num_processes > 1:
        device = f"cuda:{state.local_process_index}"
    return load_base(options.base, device=device, **held)


if __name__ == "__main__":
    run(main)
