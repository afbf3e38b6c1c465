"""Train a hypernetwork by supervised fine-tuning (Eq. 4): text in, adapter out, loss through the frozen base model.

python -m training.sft --tasks DIR --base DIR --output DIR [--offset_adapter DIR] [--head M]
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.config import HyperLoRAConfig
from hyperlora.embedder import MINILM, load_embedder
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from training.loss import mean_loss, training_mode
from training.options import option, parse, run
from training.tasks import Batches, Task, encode_task, load_tasks


@dataclass
class SFTConfig:
    """The hypernetwork's shape, and the second column of Table 7."""

    head: Literal["L", "M", "S"] = option("M", "L: A and B at once, M: one of them, S: one rank of one")
    rank: int = option(8, "rank r of the adapters")
    alpha: float = option(16.0, "LoRA alpha")
    use_rslora: bool = option(True, "scale by alpha / sqrt(r) rather than alpha / r")
    offset: Literal["none", "factors", "delta"] = option("factors", "offset added to A and B (Eq. 6) or to dW (Eq. 8)")
    task_input: Literal["text", "one_hot", "learned"] = option("text", "what stands for a task (Sec. 3.2)")
    learned_size: int = option(64, "size of a learned task vector")
    embedder: str = option(MINILM, "sentence encoder of the descriptions, or last_token for the base itself")
    embedding_noise: float = option(0.0, "standard deviation of noise on the embedding, whose entries are about 1")
    dropout: float = option(0.05, "dropout in the hypernetwork (Fig. 8)")
    lora_dropout: float = option(0.05, "dropout on the adapter's input")
    batch_size: int = option(4, "examples in one forward pass")
    gradient_accumulation_steps: int = option(16, "forward passes to an optimizer step")
    epochs: float = option(5.0, "passes over all examples (Table 7: 5 for 256 tasks, 80 for 16)")
    max_steps: int = option(0, "optimizer steps instead of epochs, where above 0")
    learning_rate: float = option(1e-4, "highest learning rate, reached after the warm-up")
    warmup_fraction: float = option(0.1, "part of the steps in which the learning rate rises; then it falls to 0")
    max_grad_norm: float = option(1.0, "gradient norm above which it is scaled down")
    weight_decay: float = option(0.0, "AdamW's weight decay")
    neftune_alpha: float = option(5.0, "NEFTune's noise on the token embeddings; 0: none")
    bf16: bool = option(False, "bfloat16 autocast")
    prompt_style: Literal["input", "description_input"] = option("input", "whether prompts hold a description too")
    seed: int = option(0, "of the hypernetwork's start, the data and the noise")
    save_every: int = option(500, "steps between two checkpoints to resume from")
    eval_every: int = option(0, "steps between two validation losses (test examples, unseen descriptions); 0: none")
    eval_batches: int = option(8, "batches of a validation")
    log_every: int = option(50, "steps between two lines of progress")


def build(
    adapted: AdaptedModel,
    tokenizer,
    tasks: Sequence[Task],
    config: SFTConfig,
    offset: Adapter | None = None,
    embedder=None,
) -> HyperLoRA:
    """A hypernetwork for this base, untrained, with its offset and the tasks' training descriptions in it.

    At step 0 its adapters are `offset` exactly (Eq. 6, 8). `embedder`: an object with `embed` and `d_emb`; loaded by
    its name where it is None.
    """
    if (offset is None) != (config.offset == "none"):
        raise UserError(f"Offset {config.offset!r} " + ("needs" if offset is None else "takes no") + " offset adapter.")
    descriptions, embeddings, d_emb = [], None, config.learned_size
    if config.task_input == "text":
        embedder = embedder or load_embedder(config.embedder, base=(adapted.model, tokenizer))
        descriptions = [text for task in tasks for text in task.descriptions]
        embeddings, d_emb = embedder.embed(descriptions), embedder.d_emb
    elif config.task_input == "one_hot":
        d_emb = len(tasks)
    torch.manual_seed(config.seed)
    hyperlora = HyperLoRA(
        HyperLoRAConfig(
            head=config.head,
            target_modules=dict(adapted.target_modules),
            num_layers=adapted.num_layers,
            d_emb=d_emb,
            rank=config.rank,
            alpha=config.alpha,
            use_rslora=config.use_rslora,
            task_input=config.task_input,
            num_tasks=None if config.task_input == "text" else len(tasks),
            offset=config.offset,
            dropout=config.dropout,
            embedder=config.embedder,
            base_model=adapted.model.config.name_or_path or None,
            chat_template=tokenizer.chat_template,
            prompt_style=config.prompt_style,
        )
    )
    if offset is not None:
        hyperlora.set_offset(offset)
    if embeddings is not None:
        hyperlora.set_descriptions(descriptions, embeddings)
        hyperlora.embedder = embedder
    return hyperlora


class SFTModel(nn.Module):
    """Batch -> loss: the batch's descriptions become adapters, and the frozen base answers with them.

    task_inputs: [descriptions, d_emb] (or ids [tasks] for learned vectors), what `index` of a batch points into.
    Only the hypernetwork is a submodule: the base belongs to no checkpoint.
    """

    def __init__(self, hyperlora: HyperLoRA, adapted: AdaptedModel, task_inputs: Tensor, embedding_noise: float = 0.0):
        super().__init__()
        self.hyperlora = hyperlora
        self.adapted = adapted
        self.embedding_noise = embedding_noise
        self.register_buffer("task_inputs", task_inputs, persistent=False)

    def train(self, mode: bool = True) -> "SFTModel":
        self.adapted.model.train(mode)  # for the adapter's dropout and NEFTune
        return super().train(mode)

    def forward(self, input_ids: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        """input_ids, labels: [b, t]; index: [b] -> {"loss"}. Each description of the batch is generated once."""
        unique, rows = index.unique(return_inverse=True)
        task_input = self.task_inputs[unique]
        if self.training and self.embedding_noise:
            task_input = task_input + self.embedding_noise * torch.randn_like(task_input)
        factors = self.hyperlora.factors(task_input)
        with self.adapted.use_factors(factors, rows, self.hyperlora.scale):
            return {"loss": mean_loss(self.adapted.model, input_ids, labels)}


class BatchTrainer(Trainer):
    """A Trainer whose datasets yield ready batches."""

    def get_train_dataloader(self) -> DataLoader:
        # a generator of its own: a loader that draws from the global one would change the noise after a resume
        return DataLoader(self.train_dataset, batch_size=None, generator=torch.Generator())

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        return DataLoader(self.eval_dataset, batch_size=None, generator=torch.Generator())


def task_inputs(hyperlora: HyperLoRA, tasks: Sequence[Task], kind: str) -> tuple[Tensor, list[list[int]]]:
    """What stands for each task: the inputs of all (text [n, d_emb], one-hot, or ids [n]), and each task's own rows.

    kind: `descriptions` or `eval_descriptions`, read only where the task input is text.
    """
    if hyperlora.config.task_input != "text":
        ids = torch.arange(len(tasks))
        one_hot = hyperlora.config.task_input == "one_hot"
        return torch.eye(len(tasks)) if one_hot else ids, [[i] for i in ids.tolist()]
    texts = [getattr(task, kind) for task in tasks]
    ends = list(itertools.accumulate(map(len, texts)))
    flat = [text for part in texts for text in part]
    return hyperlora.embedder.embed(flat), [list(range(e - len(p), e)) for p, e in zip(texts, ends, strict=True)]


def train(
    hyperlora: HyperLoRA,
    adapted: AdaptedModel,
    tokenizer,
    tasks: Sequence[Task],
    config: SFTConfig,
    output: str | Path,
    resume: bool = False,
) -> list[dict[str, float]]:
    """Train `hyperlora` in place on the tasks' `train` examples and save it in `output`; gives the Trainer's log.

    Tasks are drawn evenly, and each example draws one of its task's descriptions. `resume` goes on from the last
    checkpoint in OUTPUT/checkpoints, with the same data, noise and losses as a run that never stopped.
    """
    output = Path(output)
    tasks = [task for task in tasks if task.train] if hyperlora.config.task_input == "text" else list(tasks)
    sources = [encode_task(tokenizer, task, config.prompt_style) for task in tasks]
    inputs, choices = task_inputs(hyperlora, tasks, "descriptions")
    pad, accumulation = tokenizer.pad_token_id, config.gradient_accumulation_steps
    steps = config.max_steps or math.ceil(config.epochs * sum(map(len, sources)) / (config.batch_size * accumulation))
    batches = Batches(sources, choices, config.batch_size, pad, config.seed)
    checkpoint = get_last_checkpoint(output / "checkpoints") if resume and (output / "checkpoints").is_dir() else None
    if checkpoint:
        batches.start = int(checkpoint.rpartition("-")[2]) * accumulation

    held_out = [task for task in tasks if task.test and task.eval_descriptions] if config.eval_every else []
    validation = None
    if held_out and hyperlora.config.task_input == "text":
        tests = [encode_task(tokenizer, task, config.prompt_style, "test") for task in held_out]
        unseen, unseen_choices = task_inputs(hyperlora, held_out, "eval_descriptions")
        unseen_choices = [[len(inputs) + i for i in part] for part in unseen_choices]
        inputs = torch.cat([inputs, unseen])
        validation = list(itertools.islice(Batches(tests, unseen_choices, config.batch_size, pad), config.eval_batches))

    device = adapted.model.get_input_embeddings().weight.device
    trainer = BatchTrainer(
        SFTModel(hyperlora, adapted, inputs, config.embedding_noise),
        TrainingArguments(
            output_dir=str(output / "checkpoints"),
            max_steps=steps,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=accumulation,
            learning_rate=config.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(config.warmup_fraction * steps),
            max_grad_norm=config.max_grad_norm,
            weight_decay=config.weight_decay,
            bf16=config.bf16,
            use_cpu=device.type == "cpu",
            seed=config.seed,
            save_steps=config.save_every,
            save_total_limit=2,
            logging_steps=config.log_every,
            eval_strategy="steps" if validation else "no",
            eval_steps=config.eval_every or None,
            prediction_loss_only=True,
            label_names=["labels"],
            remove_unused_columns=False,
            ignore_data_skip=True,  # the batches start where the checkpoint stopped
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=batches,
        eval_dataset=validation,
    )
    adapted.lora_dropout, before = config.lora_dropout, adapted.lora_dropout
    try:
        with training_mode(adapted.model, config.neftune_alpha):
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        adapted.lora_dropout = before
    hyperlora.eval().to("cpu").save_pretrained(output)
    return trainer.state.log_history


@dataclass(kw_only=True)
class Options(SFTConfig):
    """What `python -m training.sft` takes beside the settings."""

    tasks: str = option(help="folder of task files")
    base: str = option(help="the base model: folder or Hub id")
    output: str = option(help="folder for the checkpoints and, at the end, the trained HyperLoRA")
    offset_adapter: str | None = option(None, "PEFT folder of the multi-task or average LoRA that is the offset")
    target_modules: str = option("q_proj,v_proj", "names of the adapted linears, with commas between")
    resume: bool = option(False, "go on from the last checkpoint in the output folder")
    device: str = option("cpu", "cpu, cuda, ...")


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    tasks = load_tasks(options.tasks)
    model, tokenizer = load_base(options.base, device=options.device)
    adapted = AdaptedModel(model, options.target_modules.split(","))
    offset = Adapter.from_pretrained(options.offset_adapter) if options.offset_adapter else None
    hyperlora = build(adapted, tokenizer, tasks, options, offset)
    train(hyperlora, adapted, tokenizer, tasks, options, options.output, options.resume)


if __name__ == "__main__":
    run(main)
