"""The base model of the mini preset: a small Mistral, one token a character, trained on the suite.

Half of its examples have a training description in front of the input, half the input alone.
"""

import string
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import (
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
    get_wsd_schedule,
)

from hyperlora.base import load_base
from hyperlora.devices import fast_bfloat16
from training.mini.splits import split_of
from training.mini.suite import TextTask
from training.parts.batches import collate, encode_all
from training.parts.compile import pays
from training.parts.loss import mean_loss, training_mode
from training.parts.muon import MuonAdamW
from training.parts.trainer import BatchTrainer, checkpoint_step, last_checkpoint

CONTEXT = 512  # tokens
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('This model knows the roles user and assistant only.') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} {% endif %}"  # the space before an answer is the template's, not the answer's
)


def make_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """One token a printable ASCII character; what is not ASCII becomes <unk>."""
    characters = [c for c in string.printable if c.isprintable()] + ["\n"]
    vocabulary = {token: i for i, token in enumerate(SPECIAL + characters)}
    tokens = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokens.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=["[INST]", "[/INST]"],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> MistralForCausalLM:
    torch.manual_seed(seed)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            sliding_window=None,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


class FreshBatches(IterableDataset):
    """Endless batches of new examples, the same for the same seed; sorted by length within a window of batches."""

    def __init__(self, tasks: Sequence[TextTask], tokenizer, batch_size: int, start: int = 0, window: int = 32):
        self.tasks, self.tokenizer, self.batch_size = tasks, tokenizer, batch_size
        self.start, self.window = start, window
        self.cum_weights = list(accumulate(task.weight for task in tasks))

    def _draw(self, rng: Random) -> tuple[dict[str, str], str | None]:
        task = rng.choices(self.tasks, cum_weights=self.cum_weights)[0]
        while split_of((pair := task.make(rng))[0]) != "train":
            pass
        shown = rng.choice(task.descriptions) if rng.random() < 0.5 else None
        return {"input": pair[0], "output": pair[1]}, shown

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        number, skip = divmod(self.start, self.window)
        while True:
            rng = Random(number)
            rows, shown = zip(*(self._draw(rng) for _ in range(self.window * self.batch_size)), strict=True)
            encoded = sorted(encode_all(self.tokenizer, rows, shown), key=lambda row: len(row["input_ids"]))
            order = list(range(self.window))
            rng.shuffle(order)
            for i in order[skip:]:
                yield collate(encoded[i * self.batch_size : (i + 1) * self.batch_size], self.tokenizer.pad_token_id)
            number, skip = number + 1, 0


class BaseTrainer(BatchTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return mean_loss(model, inputs["input_ids"], inputs["labels"])


def train_base(
    tasks: Sequence[TextTask],
    folder: Path,
    steps: int,
    init: Path | None = None,
    batch_size: int = 64,
    lr: float = 3e-3,
) -> None:
    """Train the base on `tasks` and save it with its tokenizer in `folder`; goes on from the last checkpoint.

    init: a base of the same form whose weights it starts from.
    """
    tokenizer = make_tokenizer(folder)
    model = make_model(tokenizer)
    if init is not None:
        model.load_state_dict(load_base(init)[0].state_dict())
    batches = FreshBatches(tasks, tokenizer, batch_size)
    checkpoints = folder / "checkpoints"
    last = last_checkpoint(checkpoints)
    if last:
        batches.start = checkpoint_step(last)
    blocks = [p for p in model.model.layers.parameters() if p.ndim == 2]
    optimizer = MuonAdamW(model, blocks, lr, weight_decay=0.01)
    trainer = BaseTrainer(
        model,
        TrainingArguments(
            output_dir=str(checkpoints),
            max_steps=steps,
            max_grad_norm=1.0,
            bf16=fast_bfloat16("cuda" if torch.cuda.is_available() else "cpu"),
            use_cpu=not torch.cuda.is_available(),
            save_steps=500,
            save_total_limit=2,
            logging_steps=50,
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            ignore_data_skip=True,
        ),
        train_dataset=batches,
        optimizers=(
            optimizer,
            get_wsd_schedule(optimizer, num_warmup_steps=100, num_decay_steps=steps * 2 // 5, num_training_steps=steps),
        ),
    )
    with training_mode(model, compiled=pays(steps)):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    model.to(torch.bfloat16).save_pretrained(folder)
