"""One token for every row as a recorded graph: on a CPU, a small model's step is mostly Python and not products.

TorchScript's tracing records the forward that is there, adapters and all, in a second or two and needs no compiler; its
interpreter then runs the same operations on other tokens, rows, lengths and adapters. (torch.compile takes minutes for
thirty layers and, with a cache that grows, was no faster than Python.)
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from hyperlora.adapted import AdaptedModel
from hyperlora.batch import ROOM, Batch
from hyperlora.halves import packed_weights

# Dense models, whose forward does the same whatever the tokens and the length are.
STEADY = ("llama", "mistral", "phi3", "qwen2", "qwen3")
STEADY_ROPE = ("default", "linear", "llama3")
TOLERANCE = 1e-3  # between the graph's logits and the model's, as a part of the largest


class _FixedLayer(DynamicLayer):
    """Keys and values [rows, heads, capacity, d], of which a forward writes column `at` [1] in place."""

    def __init__(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.at = keys, values, at

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.at, key_states)
        self.values.index_copy_(2, self.at, value_states)
        return self.keys, self.values


class _Step(nn.Module):
    """What is recorded: an adapted model's step, tensors alone in and out.

    A module, since tracing takes the packed weights of halved linears from nothing else.
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        super().__init__()
        self._adapted = adapted
        for i, weights in enumerate(packed_weights(adapted.model)):
            setattr(self, f"packed_{i}", weights)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        at: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        A: list[Tensor],
        B: list[Tensor],
    ) -> Tensor:
        """Tokens and positions [rows, 1], `_mask`'s mask, a cache and its column to fill -> logits [rows, 1, v]."""
        cache = Cache(layers=[_FixedLayer(*sides, at) for sides in zip(keys, values, strict=True)])
        inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        with self._adapted.use_rows(A, B):
            return self._adapted.model(**inputs, past_key_values=cache, use_cache=True).logits


class StepGraph:
    """An adapted model's step, once it has been recorded."""

    def __init__(self, adapted: AdaptedModel) -> None:
        self._adapted = adapted
        self._graph: Callable[..., Tensor] | None = None

    @torch.inference_mode()
    def record(self) -> None:
        """Record the step, unless the model's does not lend itself to it, or the graph's logits are not the model's."""
        model = self._adapted.model
        if not _is_steady(model):
            return
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        try:
            step = _Step(self._adapted)
            graph = torch.jit.trace(step, self._example(2, 8), check_trace=False, strict=False)
            other = self._example(3, 12)
            logits = step(*other)
            with torch.jit.optimized_execution(False):
                error = (graph(*other) - logits).abs().max()
        except Exception:  # a PyTorch that no longer traces, or a model that it cannot
            return
        if error <= TOLERANCE * logits.abs().max():
            self._graph = graph

    def bind(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The step of a batch, inside `use` and as long as its rows stay; None where none is recorded that fits.

        It takes tokens and positions [rows, 1] and gives logits [rows, 1, vocabulary]. The caller counts the column.
        """
        if self._graph is None:
            return None
        A, B = self._adapted.by_row(len(batch.rows))
        if A[0].dtype != torch.float32:
            return None
        graph, layers, dtype = self._graph, batch.cache.layers, self._adapted.model.dtype
        mask = None

        def step(tokens: Tensor, positions: Tensor) -> Tensor:
            nonlocal mask
            rows, length = len(batch.rows), batch.length
            for layer in layers:
                layer.show(rows, length)  # without what a step that failed may have left
                layer.reserve(right=1)
            # Columns that nothing is in cost as well; the mask has to be another one when there are more.
            capacity = min(-(-(length + 1) // ROOM) * ROOM, *(layer.columns for layer in layers))
            keys, values = ([layer.seen(side, capacity) for layer in layers] for side in (0, 1))
            if mask is None or mask.shape[-1] != capacity:
                mask = _mask(batch.pad, length, capacity, dtype)
            mask[..., length] = 0
            with torch.jit.optimized_execution(False):  # which would take seconds more, for a tenth
                logits = graph(tokens, positions, mask, torch.tensor([length]), keys, values, A, B)
            for layer in layers:
                layer.show(rows, length + 1)
            return logits

        return step

    def _example(self, rows: int, capacity: int) -> tuple[Tensor | list[Tensor], ...]:
        """Arguments of `_Step`: the last column but one, a row padded, each row with factors of its own."""
        model, length, rank = self._adapted.model, capacity - 2, rows
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        drawn = torch.Generator().manual_seed(0)

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=drawn)

        pad = torch.tensor([0, 1] + [0] * (rows - 2))
        cache = [random(rows, heads, capacity, d).to(model.dtype) for _ in range(2 * config.num_hidden_layers)]
        sizes = [self._adapted.target_modules[module] for module, _, _ in self._adapted.linears()]
        return (
            torch.arange(rows)[:, None],
            (length - pad)[:, None],
            _mask(pad, length, capacity, model.dtype),
            torch.tensor([length]),
            cache[::2],
            cache[1::2],
            [0.1 * random(rows, rank, d_in) for d_in, _ in sizes],
            [0.1 * random(rows, d_out, rank) for _, d_out in sizes],
        )


def _mask(pad: Tensor, length: int, capacity: int, dtype: torch.dtype) -> Tensor:
    """[rows, 1, 1, capacity], to be added to scores: 0 from `pad` [rows] to column `length`, else -inf."""
    columns = torch.arange(capacity)
    seen = (columns >= pad[:, None]) & (columns <= length)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))[:, None, None]


def _is_steady(model: PreTrainedModel) -> bool:
    """Whether the model's step is always the same operations, on the CPU."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in STEADY
        and rope.get("rope_type", "default") in STEADY_ROPE
        and getattr(config, "sliding_window", None) is None
        and not getattr(model, "is_quantized", False)
        and all(parameter.device.type == "cpu" for parameter in model.parameters())
    )
