"""Train plain LoRAs: one a task (Eq. 1), one for all tasks (Eq. 2), and their elementwise average.

What a LoRA is, and PEFT's files, are in `hyperlora/lora.py`.

Many are trained in one run, each row of a batch with its own A and B, so that a hundred cost little more than the rows
they need. Nothing passes from one to another: each has its own data order, gradient clipping and Adam state.
"""

import json
import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from torch import Tensor

from hyperlora.adapted import AdaptedModel
from hyperlora.base import Precision, load_base, origin, precision
from hyperlora.config import MAX_RANK, lora_scale
from hyperlora.errors import UserError
from hyperlora.files import check_writable
from hyperlora.hypernetwork import Factors
from hyperlora.lora import Adapter
from training.parts.adapters import average, form, load_adapters, read_index, read_settings, save_adapters
from training.parts.batches import IGNORE, Batches, loader, row_length
from training.parts.digest import base_digest
from training.parts.loss import answer_loss, training_mode
from training.parts.options import option, parse, run
from training.parts.rows import RowOptions, Rows, sources, task_weights
from training.tasks import Task, load_tasks

FREE = ("gradient_checkpointing", "compile", "loras_at_once", "log_every")  # what a resumed run may have otherwise


@dataclass
class LoRAConfig(RowOptions):
    """Figure 7 and the first column of Table 7."""

    rank: int = option(8, "rank r of every adapter", least=1, most=MAX_RANK)
    alpha: float = option(16.0, "LoRA alpha", above=0)
    use_rslora: bool = option(True, "scale by alpha / sqrt(r) rather than alpha / r")
    lora_dropout: float = option(0.05, "dropout on the adapter's input", least=0, most=0.99)
    batch_size: int = option(4, "examples an adapter in one forward pass", least=1, most=4096)
    gradient_accumulation_steps: int = option(2, "forward passes to an optimizer step", least=1, most=4096)
    longest: int = option(0, "tokens of a row; longer ones are left out; 0: all that the base model takes", least=0)
    epochs: float = option(10.0, "passes over the examples", above=0)
    max_steps: int = option(0, "optimizer steps instead of epochs, where above 0", least=0)
    learning_rate: float = option(8e-5, "highest learning rate, reached after the warm-up", least=0)
    warmup_fraction: float = option(
        0.1, "part of the steps in which the learning rate rises; then it falls to 0", least=0, most=1
    )
    max_grad_norm: float = option(1.0, "gradient norm of one adapter above which it is scaled down", above=0)
    weight_decay: float = option(0.0, "AdamW's weight decay", least=0)
    neftune_alpha: float = option(5.0, "NEFTune's noise on the token embeddings; 0: none", least=0)
    bf16: bool = option(False, "bfloat16 autocast")
    gradient_checkpointing: bool = option(False, "compute the base's layers twice instead of keeping what they hold")
    compile: bool = option(False, "torch.compile the base's layers: less time where elementwise work takes much of it")
    loras_at_once: int = option(32, "adapters trained in one forward pass; more take more memory", least=1)
    seed: int = option(0, "of the start of A and the order of the data", least=0)
    log_every: int = option(100, "steps between two lines of progress", least=1)


def train_loras(
    adapted: AdaptedModel,
    tokenizer,
    groups: Mapping[str, Sequence[Task]],
    config: LoRAConfig | None = None,
) -> dict[str, Adapter]:
    """Train one LoRA a group, on its tasks' `train` examples, tasks drawn evenly; group name -> adapter.

    A group of one task gives a task's own LoRA (Eq. 1), a group of all tasks the multi-task LoRA (Eq. 2). A start as
    PEFT's: A Kaiming-uniform, B zero. The base model is left as it was.
    """
    config = config or LoRAConfig()
    names = list(groups)
    longest = row_length(adapted.model, config.longest)
    data = {
        name: (*sources(tokenizer, tasks, config, longest), task_weights(tasks, config.shares))
        for name, tasks in _examples(groups).items()
    }
    adapters = {}
    base_model, base_revision = origin(adapted.model)
    adapted.lora_dropout, before = config.lora_dropout, adapted.lora_dropout
    recomputing = adapted.recomputing if config.gradient_checkpointing else None
    try:
        with training_mode(adapted.model, config.neftune_alpha, recomputing, config.compile):
            for first in range(0, len(names), config.loras_at_once):
                part = names[first : first + config.loras_at_once]
                weights = _train_together(adapted, {name: data[name] for name in part}, config, tokenizer.pad_token_id)
                for i, name in enumerate(part):
                    adapters[name] = Adapter(
                        {
                            m: (A[i].detach().cpu().clone(), B[i].detach().cpu().clone())
                            for m, (A, B) in weights.items()
                        },
                        alpha=config.alpha,
                        use_rslora=config.use_rslora,
                        lora_dropout=config.lora_dropout,
                        base_model=base_model,
                        base_revision=base_revision,
                        prompt_style=config.prompt_style,
                    )
    finally:
        adapted.lora_dropout = before
    return adapters


def _examples(groups: Mapping[str, Sequence[Task]]) -> dict[str, list[Task]]:
    """The tasks of each group that can be trained on; `UserError` where a group has none."""
    found = {name: [task for task in tasks if task.train] for name, tasks in groups.items()}
    if empty := [name for name, tasks in found.items() if not tasks]:
        raise UserError(f"No task of {empty[0]!r} has training examples.")
    return found


def _settings(adapted: AdaptedModel, tasks: Sequence[Task], options: "Options") -> dict[str, object]:
    """What shapes a LoRA of these tasks."""
    settings = {field.name: getattr(options, field.name) for field in fields(LoRAConfig) if field.name not in FREE}
    read = options.prompt_style != "input"
    content = json.dumps([[task.name, task.descriptions if read else None, task.train] for task in tasks])
    return settings | {
        "target modules": ", ".join(adapted.target_modules),
        "base_dtype": options.base_dtype,
        "content of the base": base_digest(adapted.model),
        "content of the tasks": f"{zlib.crc32(content.encode()):08x}",
    }


def _check_resumed(folder: Path, adapted: AdaptedModel, config: "Options", now: dict, before: dict | None) -> None:
    """`UserError` where the LoRA that is there was not trained as those that would follow.

    before: its settings, None for one that came from elsewhere; of that the base's name and the form are compared.
    """
    if before is not None:
        for name, value in now.items():
            if before.get(name) != value:
                raise UserError(
                    f"The LoRA {folder} was trained with {name} {before.get(name)!r}, not {value!r}: resume with the "
                    "same, or take another output folder."
                )
        return
    there = Adapter.from_pretrained(folder)
    sizes = {
        module: ((adapted.num_layers, config.rank, d_in), (adapted.num_layers, d_out, config.rank))
        for module, (d_in, d_out) in adapted.target_modules.items()
    }
    bases = {Path(base).name for base in (there.base_model, origin(adapted.model)[0]) if base}  # whatever their folder
    if len(bases) > 1 or form(there) != (config.alpha, config.use_rslora, config.prompt_style, sizes):
        raise UserError(
            f"The LoRA {folder} is of another base, alpha, rank, prompt_style or target modules than those that are to "
            "be trained: resume with the same, or take another output folder."
        )


def _train_together(
    adapted: AdaptedModel, data: dict[str, tuple[list, Rows | None, list[float]]], config: LoRAConfig, pad: int
) -> Factors:
    """Train one adapter for each entry of `data`; A [n, layers, r, d_in] and B [n, layers, d_out, r] a module."""
    n, accumulation = len(data), config.gradient_accumulation_steps
    device = adapted.model.get_input_embeddings().weight.device
    size = config.batch_size * accumulation
    own = [
        config.max_steps or math.ceil(config.epochs * sum(map(len, examples)) / size) for examples, *_ in data.values()
    ]
    steps = max(own)
    seeds = [config.seed + zlib.crc32(name.encode()) for name in data]  # the same in any company
    weights = _start(adapted, seeds, config.rank, device)
    parameters = [tensor.requires_grad_() for pair in weights.values() for tensor in pair]
    optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)
    streams = [
        iter(
            loader(
                Batches(examples, [[i]] * len(examples), config.batch_size, pad, seed, weights=often, rows=rows),
                device.type if n == 1 else "cpu",  # of many none waits long, and each would have a process
            )
        )
        for i, ((examples, rows, often), seed) in enumerate(zip(data.values(), seeds, strict=True))
    ]
    scale = lora_scale(config.alpha, config.rank, config.use_rslora)
    started, total, counted = time.perf_counter(), torch.zeros(n, device=device), 0
    for step in range(1, steps + 1):
        for _ in range(accumulation):
            batches = [next(stream) for stream, end in zip(streams, own, strict=True) if step <= end]
            ids, labels, rows = (part.to(device) for part in _joined(batches, pad))
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.bf16)
            with adapted.use_factors(weights, rows, scale), autocast:
                losses = answer_loss(adapted.model, ids, labels).sum(1)
                tokens = (labels[:, 1:] != IGNORE).sum(1)
                each = losses.new_zeros(n).index_add(0, rows, losses)
                each = each / tokens.new_zeros(n).index_add(0, rows, tokens).clamp_min(1)  # 0: at its end already
                (each.sum() / accumulation).backward()  # a sum: no adapter's gradient depends on another
            total += each.detach() / accumulation
        counted += len(batches)
        _clip(parameters, config.max_grad_norm)
        before = [p.detach().clone() for p in parameters]
        optimizer.step()
        rates = torch.tensor([_rate(step, end, config.warmup_fraction) for end in own], device=device)
        with torch.no_grad():  # a step of AdamW is linear in the learning rate: so each adapter has its own
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old.lerp(p, rates.view(-1, 1, 1, 1)))
        optimizer.zero_grad()
        if step % config.log_every == 0 or step == steps:
            if broken := [name for name, loss in zip(data, total.tolist(), strict=True) if not math.isfinite(loss)]:
                raise UserError(
                    f"The loss of {broken[0]!r} is no finite number any more at step {step}: lower learning_rate, or "
                    "raise warmup_fraction."
                )
            mean = float(total.sum()) / counted
            speed = step / (time.perf_counter() - started)
            print(f"{n} LoRAs, step {step} of {steps}: loss {mean:.4f}, {speed:.2f} steps/s", flush=True)
            total.zero_()
            counted = 0
    return weights


def _rate(step: int, steps: int, warmup_fraction: float) -> float:
    """The part of the learning rate in step 1, 2, ... of `steps`: up in the warm-up, down to 0, and 0 after the end."""
    warmup = round(warmup_fraction * steps)
    if step <= warmup:
        return (step - 1) / warmup
    return max(0.0, (steps - step + 1) / max(1, steps - warmup))


def _start(adapted: AdaptedModel, seeds: Sequence[int], r: int, device: torch.device) -> Factors:
    """PEFT's start of LoRA: A Kaiming-uniform with a = sqrt(5), so within 1 / sqrt(d_in), and B zero."""
    randoms = [torch.Generator().manual_seed(seed) for seed in seeds]
    weights = {}
    for module, (d_in, d_out) in adapted.target_modules.items():
        A = torch.stack([torch.rand(adapted.num_layers, r, d_in, generator=random) for random in randoms])
        B = torch.zeros(len(seeds), adapted.num_layers, d_out, r, device=device)
        weights[module] = ((A * 2 - 1) / math.sqrt(d_in)).to(device), B
    return weights


def _joined(batches: Sequence[dict[str, Tensor]], pad: int) -> Iterator[Tensor]:
    """The batches as one: input_ids and labels [sum of b, longest t], and the rows' adapters [sum of b]."""
    length = max(batch["input_ids"].shape[1] for batch in batches)
    for key, value in (("input_ids", pad), ("labels", IGNORE)):
        parts = [batch[key] for batch in batches]
        yield torch.cat([torch.nn.functional.pad(p, (0, length - p.shape[1]), value=value) for p in parts])
    yield torch.cat([batch["index"] for batch in batches])


def _clip(parameters: Sequence[Tensor], largest: float) -> None:
    """Scale down the gradients [n, ...] of each of n adapters whose own norm is above `largest`."""
    norms = sum(p.grad.flatten(1).square().sum(1) for p in parameters).sqrt()
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    for p in parameters:
        p.grad.mul_(factors.view(-1, 1, 1, 1))


@dataclass(kw_only=True)
class Options(LoRAConfig):
    """What `python -m training.lora` takes beside the settings."""

    tasks: str = option(help="folder of task files")
    base: str = option(help="the base model: folder or Hub id")
    output: str = option(help="folder for the adapters")
    kind: Literal["task", "multi_task"] = option("task", "one LoRA a task, with their average, or one for all tasks")
    target_modules: str = option("q_proj,v_proj", "names of the adapted linears, with commas between")
    base_dtype: Precision = option("float32", "how the frozen base is held")
    resume: bool = option(False, "leave the LoRAs that the output folder has, and train the others")
    device: str = option("cpu", "cpu, cuda, ...")


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    if PartialState(cpu=options.device == "cpu").num_processes > 1:
        raise UserError(
            "training.lora runs in one process: start it without accelerate launch, on several GPUs once for each, "
            "with another part of the tasks (--tasks) and another --output."
        )
    tasks = load_tasks(options.tasks)
    groups = {task.name: [task] for task in tasks} if options.kind == "task" else {"multi_task": tasks}
    there = read_index(options.output)
    if not options.resume and (again := [name for name in groups if name in there]):
        raise UserError(f"{options.output} has a LoRA {again[0]!r} already: resume, or take another output folder.")
    check_writable(Path(options.output))
    left = [name for name in groups if name not in there]
    _examples({name: groups[name] for name in left})  # before a large base is loaded
    model, tokenizer = load_base(options.base, device=options.device, **precision(options.base_dtype))
    adapted = AdaptedModel(model, options.target_modules.split(","))
    every = {name: _settings(adapted, of, options) for name, of in groups.items()}
    made = read_settings(options.output)
    for name in there:  # also where none is left to train
        if name in groups:
            _check_resumed(Path(options.output) / name, adapted, options, every[name], made.get(name))
    for first in range(0, len(left), options.loras_at_once):  # each part is on the disk before the next begins
        part = {name: groups[name] for name in left[first : first + options.loras_at_once]}
        trained = train_loras(adapted, tokenizer, part, options)
        save_adapters(options.output, trained, part, {name: every[name] for name in part})
    if options.kind == "task":
        averaged = set(read_index(options.output).get("average", []))
        if averaged - set(groups):  # such as held-out tasks' own LoRAs beside those that were trained on
            print(f"The average in {options.output} stays: it is of other tasks.", flush=True)
            return
        own = [adapter for name, adapter in load_adapters(options.output).items() if name in groups]
        save_adapters(options.output, {"average": average(own)}, {"average": tasks})


if __name__ == "__main__":
    run(main)
