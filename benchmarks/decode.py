"""One more token for every row of a batch: with adapters in our forward, without, and with PEFT's, unmerged.

All ways take the step that the chat engine takes, over the same random weights, keys and values, again and again at one
length. On a GPU there is a second table in which each way's step is a CUDA graph, so that no way waits for Python.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import Cache, PreTrainedModel

from benchmarks.measure import difference, medians, parser, print_table
from benchmarks.real_shapes import (
    DTYPES,
    TARGETS,
    add_shape,
    chosen_shape,
    random_adapter,
    random_base,
    same_weights,
)
from hyperlora.adapted import AdaptedModel
from hyperlora.batch import Batch
from hyperlora.lora import Adapter

Step = Callable[[], Tensor]
"""One token a row, always at the same length -> logits [rows, vocabulary]."""
NONE, ONE, OWN = "no adapter", "HyperLoRA, one adapter for all rows", "HyperLoRA, an adapter for each row"
PEFT, MIXED = "PEFT, one adapter for all rows", "PEFT, mixed batch: an adapter for each row"
# Between our step and PEFT's: in float32 a part of the largest logit, in bfloat16 of what the adapter changes. The two
# round in another order there, and on a GPU PEFT alone has A and B in float32.
TOLERANCE, PART = 1e-4, 0.25


def filled_cache(model: PreTrainedModel, rows: int, context: int) -> Cache:
    """`context` random keys and values a row, in the engine's own kind of cache."""
    config, cache = model.config, Batch().cache
    size = (2, rows, config.num_key_value_heads, context, config.head_dim)
    for layer in range(config.num_hidden_layers):
        cache.update(*torch.randn(size, dtype=model.dtype, device=model.device), layer)
    return cache


def make_step(model: PreTrainedModel, cache: Cache, masked: bool, **options) -> Step:
    """The engine's step; `masked`: with its mask, whose values the library reads on the CPU, which no graph can."""
    rows, _, context, _ = cache.layers[0].keys.shape
    tokens = torch.arange(1, rows + 1, device=model.device)[:, None]
    positions = torch.full_like(tokens, context)
    mask = torch.ones(rows, context + 1, dtype=torch.long, device=model.device) if masked else None

    def step() -> Tensor:
        for layer in cache.layers:  # forget the last step's token
            layer.show(rows, context)
        inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        return model(**inputs, past_key_values=cache, use_cache=True, **options).logits[:, -1]

    return step


def as_graph(step: Step) -> Step:
    """The step as one CUDA graph. What it reads has to stay where it is."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as PyTorch asks: a few times before, on another stream
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step()

    def replay(_: Step = step) -> Tensor:  # which holds what the graph reads
        graph.replay()
        return logits

    return replay


def peft_model(model: PreTrainedModel, adapters: list[Adapter]) -> PeftModel:
    """The base with all adapters, by the names 0, 1, ..., in the adapters' dtype; 0 is the active one."""
    cast = next(iter(adapters[0].weights.values()))[0].dtype == torch.float32
    for i, adapter in enumerate(adapters):
        settings, state = adapter.to_peft()
        if i == 0:
            model = get_peft_model(model, LoraConfig(**settings), "0", autocast_adapter_dtype=cast)
        else:
            model.add_adapter(str(i), LoraConfig(**settings), autocast_adapter_dtype=cast)
        set_peft_model_state_dict(model, state, str(i))
    model.set_adapter("0")
    return model.eval()


def compare(
    base: PreTrainedModel, rows: int, context: int, dtype: torch.dtype, graphs: bool, repetitions: int
) -> list[list[str]]:
    """The table's rows for one batch size; `dtype` is the adapters'."""
    ours = {name: AdaptedModel(same_weights(base), TARGETS) for name in (ONE, OWN)[: 1 + (rows > 1)]}
    adapters = [random_adapter(ours[ONE], dtype) for _ in range(rows)]
    peft = peft_model(same_weights(base), adapters)
    cache = filled_cache(base, rows, context)
    with ExitStack() as stack:  # the engine enters `use` when the rows change, not at each token
        for name, adapted in ours.items():
            slots = [adapted.load(adapter) for adapter in adapters]
            stack.enter_context(adapted.use(slots if name == OWN else slots[:1] * rows))
        steps = {NONE: make_step(base, cache, not graphs)}
        steps |= {name: make_step(adapted.model, cache, not graphs) for name, adapted in ours.items()}
        steps[PEFT] = make_step(peft, cache, not graphs)
        if rows > 1 and not graphs:  # it moves indices to the GPU at each linear, which no graph can
            steps[MIXED] = make_step(peft, cache, True, adapter_names=[str(i) for i in range(rows)])
        if graphs:
            steps = {name: as_graph(step) for name, step in steps.items()}
        effect = difference(steps[NONE](), steps[PEFT]())
        most = TOLERANCE if base.dtype == torch.float32 else PART * effect
        for mine, other in ((ONE, PEFT), (OWN, MIXED)):
            if mine in steps and other in steps and not (error := difference(steps[mine](), steps[other]())) < most:
                raise SystemExit(f"The logits of {mine!r} and {other!r} differ by {error:.1e} of the largest one.")
        seconds = medians(steps, repetitions)
    first = seconds[NONE]
    return [
        [f"{rows} row{'s' * (rows > 1)}: {name}", f"{1000 * taken:.2f}", f"{taken / first:.3f} x"]
        for name, taken in seconds.items()
    ]


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, repetitions=20)
    add_shape(options, "mini")
    options.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="the base's (default: bfloat16)")
    options.add_argument("--adapter_dtype", choices=DTYPES, default="float32", help="default: float32, as generated")
    options.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="batch sizes (default: 1 16)")
    options.add_argument("--context", type=int, default=256, help="tokens that are there already (default: 256)")
    args = options.parse_args(argv)
    torch.manual_seed(0)
    base = random_base(chosen_shape(args), DTYPES[args.dtype], args.device)
    for graphs in (False, True)[: 1 + (args.device != "cpu")]:
        rows = []
        for count in args.rows:
            rows += compare(base, count, args.context, DTYPES[args.adapter_dtype], graphs, args.repetitions)
        name = f"{args.shape}, {base.config.num_hidden_layers} layers, {args.dtype}"
        print_table([f"one token, {name}{', CUDA graphs' * graphs}", "ms", "of no adapter"], rows)
        print()


if __name__ == "__main__":
    main()
