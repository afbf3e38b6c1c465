"""One step of supervised fine-tuning through a frozen base with random weights of real shapes.

All ways are the training package's own step (hypernetwork, loss on answers, AdamW). Two differ only in how a row's
adapter meets its tokens: as matrix products a row, or with A and B copied for every token, as the public implementation
does. `--compile` adds the first through compiled layers. Utilisation counts the frozen base as 4 FLOPs a weight and
token, against one large matrix product here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from benchmarks.measure import added_mb, difference, held_mb, medians, parser, print_table
from benchmarks.real_shapes import TARGETS, add_shape, chosen_shape, random_base
from hyperlora.adapted import AdaptedModel
from hyperlora.config import HyperLoRAConfig
from hyperlora.devices import fast_bfloat16
from hyperlora.generator import HyperLoRA
from hyperlora.hypernetwork import Factors
from hyperlora.memory import BaseShape, HyperShape
from training.parts.batches import IGNORE
from training.parts.compile import compiled_layers
from training.parts.loss import training_mode
from training.parts.memory import sft as planned
from training.parts.memory import training_flops
from training.sft import SFTConfig, SFTModel

D_EMB = 1024
TOLERANCE = 0.2  # of the largest gradient, between the two ways in bfloat16; a mistake is seen at about 1


class Repeated:
    """`use_factors` with a copy of A and B for every token of the batch, in the forward's precision."""

    def __init__(self, adapted: AdaptedModel, lora_dropout: float):
        self.model = adapted.model
        self.lora_dropout = lora_dropout
        self._active: tuple[Factors, Tensor, float] | None = None
        for module, layer, linear in adapted.linears():
            linear.register_forward_hook(partial(self._add, module, layer))

    def _add(self, module: str, layer: int, linear: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        if self._active is None:
            return y
        factors, rows, scale = self._active
        x = args[0]
        tokens = x.shape[1]
        A, B = (side[rows, layer].to(x.dtype).repeat_interleave(tokens, 0) for side in factors[module])
        x = dropout(x, self.lora_dropout, linear.training).flatten(0, 1)[..., None]
        return y + scale * torch.bmm(B, torch.bmm(A, x)).view_as(y)

    @contextmanager
    def use_factors(self, factors: Factors, rows: Tensor, scale: float) -> Iterator[None]:
        self._active = factors, rows, scale
        try:
            yield
        finally:
            self._active = None


def make_hyperlora(shape: BaseShape, head: str, device: str) -> HyperLoRA:
    config = HyperLoRAConfig(head, shape.targets(TARGETS), shape.layers, D_EMB, offset="factors")
    hyperlora = HyperLoRA(config)
    for linear in hyperlora.network.heads.values():
        nn.init.normal_(linear.weight, std=0.005)
    return hyperlora.to(device)


def make_batch(rows: int, tokens: int, answers: int, vocab: int, device: str) -> dict[str, Tensor]:
    """Random rows, each with a task of its own, whose last `answers` tokens are the answer."""
    ids = torch.randint(vocab, (rows, tokens), device=device)
    labels = ids.clone()
    labels[:, : tokens - answers] = IGNORE
    return {"input_ids": ids, "labels": labels, "index": torch.arange(rows, device=device)}


def make_step(model: SFTModel, batch: dict[str, Tensor], settings: SFTConfig) -> Callable[[], None]:
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, fused=True)

    def step() -> None:
        loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def compiled(step: Callable[[], None], adapted: AdaptedModel) -> Callable[[], None]:
    """The same step through compiled layers, which are compiled at its first call alone."""

    def through() -> None:
        with compiled_layers(adapted.model):
            step()

    return through


def loss(model: SFTModel, batch: dict[str, Tensor]) -> Tensor:
    device = batch["input_ids"].device.type
    with torch.autocast(device, torch.bfloat16, enabled=dtype_of(device) == torch.bfloat16):
        return model(**batch)["loss"]


def dtype_of(device: str) -> torch.dtype:
    """bfloat16, but float32 on a CPU that has no instructions for it: minutes for one product."""
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32


def gradient(model: SFTModel, batch: dict[str, Tensor]) -> Tensor:
    """Of the last head's weights, which A and B of a module in every layer and row come from."""
    weight = list(model.hyperlora.network.heads.values())[-1].weight
    loss(model, batch).backward()
    found = weight.grad
    model.zero_grad()
    return found


def product_flops(device: str, repetitions: int) -> float:
    """FLOP/s of one large matrix product in the base's dtype."""
    n = 8192 if device != "cpu" else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=dtype_of(device))
    return 2 * n**3 / medians({"product": lambda: a @ b}, repetitions)["product"]


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, repetitions=3)
    add_shape(options, "mistral-7b")
    options.add_argument("--head", choices="LMS", default="M", help="of the hypernetwork (default: M)")
    options.add_argument("--batch", type=int, help="rows (default: 8, on the CPU 1)")
    options.add_argument("--tokens", type=int, help="of a row, the answer included (default: 512, on the CPU 32)")
    options.add_argument("--answers", type=int, help="tokens of an answer (default: a quarter of the row)")
    options.add_argument("--compile", action="store_true", help="with the base's layers compiled too: minutes more")
    args = options.parse_args(argv)
    device, shape, settings = args.device, chosen_shape(args), SFTConfig()
    rows, tokens = args.batch or (1 if device == "cpu" else 8), args.tokens or (32 if device == "cpu" else 512)
    answers = args.answers or max(1, tokens // 4)
    torch.manual_seed(0)
    adapted = AdaptedModel(random_base(shape, dtype_of(device), device), TARGETS)
    adapted.lora_dropout = settings.lora_dropout
    hyperlora = make_hyperlora(shape, args.head, device)
    batch = make_batch(rows, tokens, answers, shape.vocab, device)
    inputs = torch.randn(rows, D_EMB, device=device)
    ways = {"HyperLoRA": adapted, "A and B repeated for each token": Repeated(adapted, settings.lora_dropout)}
    models = {name: SFTModel(hyperlora, way, inputs) for name, way in ways.items()}
    few = {name: tensor[:2, -64:] if tensor.ndim == 2 else tensor[:2] for name, tensor in batch.items()}
    with training_mode(adapted.model):
        error = difference(*(gradient(model.eval(), few) for model in models.values()))
    if not error < TOLERANCE:
        raise SystemExit(f"The gradients differ by {error:.1%} of the largest: the two ways do not do the same.")

    shapes = HyperShape(shape, head=args.head, target_modules=tuple(TARGETS), d_emb=D_EMB)
    flops, possible = training_flops(shapes, rows, tokens, answers), product_flops(device, 10)
    steps, memory, table = {}, {}, []
    with training_mode(adapted.model, settings.neftune_alpha):
        made = {name: make_step(model.train(), batch, settings) for name, model in models.items()}
        if args.compile:
            made["HyperLoRA, compiled"] = compiled(make_step(models["HyperLoRA"], batch, settings), adapted)
        for name, step in made.items():
            try:
                step()  # warm: the optimizer's state is there
                memory[name] = added_mb(step, device), held_mb(device, peak=True)
                steps[name] = step
            except torch.cuda.OutOfMemoryError:
                table.append([name, "out of memory", *["-"] * 4])
        seconds = medians(steps, args.repetitions)
    for name, taken in seconds.items():
        row = [name, f"{taken:.3f}", f"{rows * tokens / taken:,.1f}", f"{flops / taken / possible:.1%}"]
        table.append([*row, *(f"{mb:,.0f}" for mb in memory[name])])
    dtype = str(dtype_of(device)).removeprefix("torch.")
    title = f"{args.shape}, {shape.layers} layers; a step of {rows} x {tokens} tokens, {dtype}"
    print_table([title, "s", "tokens/s", "utilisation", "MB a step adds", "MB at most"], table)
    print(f"\nOne large matrix product: {possible / 1e12:,.2f} TFLOP/s; a step has {flops / 1e12:,.2f} TFLOP.")
    parts = planned(shapes, rows, tokens, answers)
    if device != "cpu":  # there the process itself counts too
        print(f"`training.plan` counts {(sum(parts.values()) - parts['overhead']) / 1e6:,.0f} MB without overhead.")


if __name__ == "__main__":
    main()
