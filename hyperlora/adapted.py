"""The one LoRA forward, for chat, training and evaluation: y = base(x) + scale · (x Aᵀ) Bᵀ, A and B chosen by row."""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from hyperlora.base import device_of
from hyperlora.errors import UserError
from hyperlora.hypernetwork import Factors
from hyperlora.lora import Adapter

# One linear that computes what others compute as several, as in Phi-3.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@dataclass
class _Site:
    """One target linear of one layer."""

    module: str
    layer: int
    linear: nn.Module

    @property
    def size(self) -> tuple[int, int]:
        return self.linear.in_features, self.linear.out_features

    @property
    def device(self) -> torch.device:
        return device_of(self.linear)


@dataclass
class _Batch:
    """What a batch of `rows` rows adds. Each list has an entry a site, on its device; the scale is in B."""

    rows: int
    A: list[Tensor]  # [b, r, d_in] of the b adapted rows, [n, r, d_in] with `pick`, or [r, d_in] shared by all
    B: list[Tensor]  # [b, d_out, r], [n, d_out, r] or [d_out, r]
    adapted: list[Tensor] | None  # [b], the rows with an adapter; None: all of them
    pick: list[Tensor] | None = None  # [b], which of n adapters an adapted row has


class AdaptedModel:
    """A frozen base model whose target linears add each batch row's own LoRA, or none.

    The base's weights are never touched: forward hooks add to the linears' outputs while `use` or `use_factors` is
    entered, and do nothing otherwise. Any linear with `in_features` and `out_features` will do: 4- and 8-bit ones,
    those of a base on several devices, and those whose weights accelerate brings in for each forward. Up to
    `max_adapters` adapters of any rank wait in slots. A slot's number is never given again: one that was kept for too
    long is an error, never somebody else's adapter. One thread at a time; contexts are not nested.
    """

    lora_dropout: float = 0.0
    """Dropout on the adapter's input while the base is in training mode, as in PEFT."""

    def __init__(
        self,
        model: PreTrainedModel,
        target_modules: Mapping[str, tuple[int, int]] | Sequence[str],
        max_adapters: int = 64,
    ) -> None:
        """Freeze `model` and find the targets by name in each of its layers.

        `target_modules`: names, or names with the (d_in, d_out) that they should have. Raises `UserError` where one is
        not in every layer, is not a linear, or has another size. Without targets it is the base alone. Two
        `AdaptedModel`s of one model leave each other be.
        """
        self.model = model.requires_grad_(False)
        self.max_adapters = max_adapters
        self._sites = [site for module in target_modules for site in _find(model, module)]
        self.num_layers = 1 + max((site.layer for site in self._sites), default=-1)
        if len(self._sites) != self.num_layers * len(target_modules):
            raise UserError(f"Not every layer of the base model has all of {', '.join(target_modules)}; target others.")
        sizes = {site.module: site.size for site in self._sites}
        if isinstance(target_modules, Mapping):
            sizes = {module: tuple(size) for module, size in target_modules.items()}
        self.target_modules: dict[str, tuple[int, int]] = sizes
        """Module name -> (d_in, d_out)."""
        for site in self._sites:
            if site.size != sizes[site.module]:
                raise UserError(
                    f"{site.module} in layer {site.layer} of the base model is {_arrow(site.size)}, but should be "
                    f"{_arrow(sizes[site.module])}; use the base model that this was made for."
                )
        self._slots: OrderedDict[int, Adapter] = OrderedDict()  # the least recently used first
        self._next_slot = 0
        self._in_use: set[int | None] = set()
        self._pinned: set[int] = set()
        self._active: _Batch | None = None
        self._gathered: tuple[tuple[int | None, ...], _Batch | None] = (), None
        self._hooks = [site.linear.register_forward_hook(partial(self._add, i)) for i, site in enumerate(self._sites)]

    def _add(self, site: int, linear: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """The hook of one site: y = base(x) [b, t, d_out] plus scale · (x Aᵀ) Bᵀ, for x [b, t, d_in]."""
        batch = self._active
        if batch is None:
            return y
        x, A, B = args[0].to(y.device), batch.A[site], batch.B[site]  # a linear's own hook may have moved its input
        if len(x) != batch.rows:
            raise UserError(f"The batch has {len(x)} rows but {batch.rows} adapters were chosen; choose one a row.")
        if batch.adapted is not None:
            x = x.index_select(0, batch.adapted[site])
        if batch.pick is not None:
            A, B = A.index_select(0, batch.pick[site]), B.index_select(0, batch.pick[site])
        if x.dtype != A.dtype and not torch.is_autocast_enabled(x.device.type):
            x = x.to(A.dtype)
        if self.lora_dropout and linear.training:
            x = F.dropout(x, self.lora_dropout)
        if batch.adapted is None and y.dtype == x.dtype == B.dtype and not torch.is_grad_enabled():
            # into the linear's fresh output: a token at a time, each kernel fewer counts
            if B.ndim == 3:
                return y.baddbmm_(torch.bmm(x, A.mT), B.mT)
            y.view(-1, y.shape[-1]).addmm_(x.flatten(0, 1) @ A.mT, B.mT)
            return y
        delta = (x @ A.mT) @ B.mT
        if batch.adapted is None:
            return (y + delta).to(y.dtype)
        dtype = torch.promote_types(y.dtype, delta.dtype)
        return y.to(dtype).index_add(0, batch.adapted[site], delta.to(dtype)).to(y.dtype)

    def linears(self) -> Iterator[tuple[str, int, nn.Module]]:
        """Module name, layer and linear of every target."""
        yield from ((site.module, site.layer, site.linear) for site in self._sites)

    def check_fit(self, adapter: Adapter) -> None:
        """Raise `UserError` where the adapter has other layers, modules or sizes than this base's targets."""
        if adapter.num_layers != self.num_layers:
            raise UserError(
                f"The adapter has {adapter.num_layers} layers and the base model {self.num_layers}; "
                "the adapter was made for another base model."
            )
        for module, (A, B) in adapter.weights.items():
            size, wanted = (A.shape[2], B.shape[1]), self.target_modules.get(module)
            if wanted is None:
                raise UserError(f"The adapter changes {module}; only {', '.join(self.target_modules)} can be here.")
            if size != wanted:
                raise UserError(
                    f"The adapter's {module} is {_arrow(size)} and the base model's {_arrow(wanted)}; "
                    "the adapter was made for another base model."
                )

    def load(self, adapter: Adapter, pinned: bool = False) -> int:
        """Put an adapter in a slot and give the slot's number; the least recently used one makes room if need be.

        One in use does not, nor a `pinned` one: that stays until `unload`. The tensors keep their dtype and lie where
        the first target computes, shared with `adapter` where they are there already. A target that it lacks stays as
        in the base. Raises `UserError` where it does not fit, or no slot can make room.
        """
        self.check_fit(adapter)
        if len(self._slots) >= self.max_adapters:
            oldest = next((slot for slot in self._slots if slot not in self._in_use | self._pinned), None)
            if oldest is None:
                raise UserError(f"All {self.max_adapters} adapter slots are in use; try again in a moment.")
            self.unload(oldest)
        device, (A, B) = self._sites[0].device, next(iter(adapter.weights.values()))
        lacking = {
            module: (A.new_zeros(*A.shape[:2], d_in), B.new_zeros(len(B), d_out, adapter.rank))
            for module, (d_in, d_out) in self.target_modules.items()
            if module not in adapter.weights
        }
        weights = {
            module: (A.detach().to(device), B.detach().to(device))
            for module, (A, B) in (lacking | adapter.weights).items()
        }
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._slots[slot] = replace(adapter, weights=weights)
        self._pinned |= {slot} if pinned else set()
        return slot

    def unload(self, slot: int) -> None:
        """Empty a slot. Batches that use it now go on."""
        self._slots.pop(slot, None)
        if slot in self._gathered[0]:
            self._gathered = (), None
        self._pinned.discard(slot)

    @contextmanager
    def use(self, slots: Sequence[int | None]) -> Iterator[None]:
        """Inside, row i of every batch has the adapter of `slots[i]`; None: the base alone.

        A and B are gathered by row once, here, and kept for those who come back with the same rows; rows that all have
        one adapter share a plain matmul. Raises `UserError` where a slot is empty and, inside, where a batch has
        another number of rows.
        """
        key, kept = tuple(slots), self._gathered
        if several := len(set(key)) > 1:  # one row in between, whose prompt is read, leaves them alone
            self._gathered = (), None  # not two of them in memory
        batch = kept[1] if key == kept[0] else self._gather(slots)
        self._gathered = (key, batch) if several else kept
        with self._entered(batch):
            self._in_use = set(slots)
            try:
                yield
            finally:
                self._in_use = set()

    @torch.no_grad()
    def _gather(self, slots: Sequence[int | None]) -> _Batch | None:
        for slot in set(slots) - {None}:
            if slot not in self._slots:
                raise UserError(f"Adapter slot {slot} is empty; load the adapter again.")
            self._slots.move_to_end(slot)
        rows = [row for row, slot in enumerate(slots) if slot is not None]
        if not rows:
            return None
        shared = len({slots[row] for row in rows}) == 1
        adapters = [self._slots[slots[row]] for row in (rows[:1] if shared else rows)]
        rank = max(adapter.rank for adapter in adapters)
        dtype = reduce(torch.promote_types, {A.dtype for adapter in adapters for A, _ in adapter.weights.values()})
        if self._sites[0].device.type == "cuda":  # so that no token waits for a cast
            dtype = self.model.dtype
        factors = {}
        for module in self.target_modules:
            triples = [(*adapter.weights[module], adapter.scale) for adapter in adapters]
            # Lower ranks are filled up with zeros; the copies lie in the order that the forward reads: layer, row.
            A = [_filled(A, (0, 0, 0, rank - A.shape[1])).to(dtype) for A, _, _ in triples]
            B = [_filled(B * scale, (0, rank - B.shape[2])).to(dtype) for _, B, scale in triples]
            factors[module] = (A[0], B[0]) if shared else (torch.stack(A, dim=1), torch.stack(B, dim=1))
        return self._batch(len(slots), rows, factors)

    @contextmanager
    def use_factors(self, factors: Factors, rows: Tensor, scale: float) -> Iterator[None]:
        """Inside, row i of every batch has adapter `rows[i]` of `factors`, with gradients to its A and B.

        `factors`: module -> (A [n, layers, r, d_in], B [n, layers, d_out, r]) for every target; `rows` [b] int64, -1
        for the base alone. `backward` has to run inside too where gradient checkpointing recomputes the forward without
        `recomputing`. Raises `UserError` for another shape or an index out of range.
        """
        n, layers = len(next(iter(factors.values()))[0]), self.num_layers
        for module, (d_in, d_out) in self.target_modules.items():
            shapes = [list(factor.shape) for factor in factors.get(module, ())]
            if not shapes or shapes != [[n, layers, r := shapes[0][2], d_in], [n, layers, d_out, r]]:
                raise UserError(f"The factors of {module} have shapes {shapes}, which do not fit the base model.")
        ids = rows.tolist()
        if not all(-1 <= i < n for i in ids):
            raise UserError(f"The rows choose among {n} adapters, so they should be from -1 to {n - 1}, not {ids}.")
        adapted = [row for row, i in enumerate(ids) if i >= 0]
        chosen = [ids[row] for row in adapted]
        if not chosen:
            batch = None
        elif len(set(chosen)) == 1:
            i = chosen[0]
            batch = self._batch(len(ids), adapted, {m: (A[i], B[i] * scale) for m, (A, B) in factors.items()})
        else:
            by_layer = {m: (A.transpose(0, 1), (B * scale).transpose(0, 1)) for m, (A, B) in factors.items()}
            batch = self._batch(len(ids), adapted, by_layer, None if chosen == list(range(n)) else chosen)
        with self._entered(batch):
            yield

    def _batch(self, size: int, adapted: list[int], factors: Factors, pick: list[int] | None = None) -> _Batch:
        """A batch of factors that start with the layers, A [layers, .., r, d_in] and B [layers, .., d_out, r]."""
        devices = [site.device for site in self._sites]

        def index(values: list[int]) -> list[Tensor]:
            copies = {device: torch.tensor(values, device=device) for device in set(devices)}
            return [copies[device] for device in devices]

        # One unbind a module: its backward puts the layers' gradients together once, not once a layer.
        A = [A for module in self.target_modules for A in factors[module][0].unbind()]
        B = [B for module in self.target_modules for B in factors[module][1].unbind()]
        return _Batch(
            size,
            A=[a.to(device) for a, device in zip(A, devices, strict=True)],
            B=[b.to(device) for b, device in zip(B, devices, strict=True)],
            adapted=index(adapted) if len(adapted) < size else None,
            pick=index(pick) if pick is not None else None,
        )

    def by_row(self, rows: int) -> tuple[list[Tensor], list[Tensor]]:
        """What `use` gave each of its rows, as `use_rows` takes it: A [rows, r, d_in] and B [rows, d_out, r] a linear.

        Zeros for a row without an adapter.
        """
        if (batch := self._active) is None:
            sizes = [site.size for site in self._sites]
            return [torch.zeros(rows, 1, size[0]) for size in sizes], [torch.zeros(rows, size[1], 1) for size in sizes]

        def spread(site: int, factor: Tensor) -> Tensor:
            if batch.adapted is None:
                return factor.expand(rows, -1, -1)
            return factor.new_zeros(rows, *factor.shape[-2:]).index_put((batch.adapted[site],), factor)

        return [spread(*each) for each in enumerate(batch.A)], [spread(*each) for each in enumerate(batch.B)]

    def use_rows(self, A: list[Tensor], B: list[Tensor]) -> AbstractContextManager:
        """Inside, a batch has these factors, which `by_row` gave, instead of those of `use`."""
        return self._again(_Batch(A[0].shape[0], A, B, adapted=None))

    def recomputing(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """The `context_fn` of `torch.utils.checkpoint`: what backward computes again has the adapters of its forward.

        So backward may run when `use_factors` has been left. Only for `use_reentrant=False`.
        """
        return nullcontext(), self._again(self._active)

    @contextmanager
    def _again(self, batch: _Batch | None) -> Iterator[None]:
        before, self._active = self._active, batch
        try:
            yield
        finally:
            self._active = before

    @contextmanager
    def _entered(self, batch: _Batch | None) -> Iterator[None]:
        if self._active is not None:
            raise RuntimeError("AdaptedModel.use and use_factors cannot be nested.")
        with self._again(batch):
            yield

    def remove(self) -> None:
        """Take the hooks off and empty the slots: the linears are as they came (the base stays frozen)."""
        for hook in self._hooks:
            hook.remove()
        self._slots.clear()
        self._gathered = (), None


def _find(model: PreTrainedModel, module: str) -> list[_Site]:
    """The linears of that name, in the order of their layers: paths with one number, as layers.3.self_attn.q_proj."""
    path = re.compile(rf"(?:[^\d.][^.]*\.)*(\d+)\.(?:[^\d.][^.]*\.)*{re.escape(module)}")
    found: dict[int, _Site] = {}
    for name, linear in model.named_modules():
        if not (match := path.fullmatch(name)):
            continue
        layer = int(match[1])
        if layer in found:
            raise UserError(
                f"The base model has more than one {module} in layer {layer}; it cannot be adapted by that name."
            )
        if not hasattr(linear, "in_features") or not hasattr(linear, "out_features"):
            raise UserError(
                f"The base model's {module} is a {type(linear).__name__}, not a linear layer; it cannot be adapted."
            )
        found[layer] = _Site(module, layer, linear)
    if not found:
        for fused in (name for name, parts in FUSED.items() if module in parts):
            if any(name.endswith(f".{fused}") for name, _ in model.named_modules()):
                raise UserError(
                    f"The base model has no {module} of its own: its layers fuse {', '.join(FUSED[fused])} into one "
                    f"linear. Target {fused} instead."
                )
        linears = {name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "in_features")}
        raise UserError(f"The base model has no {module} in its layers; its linears are {', '.join(sorted(linears))}.")
    return [found[layer] for layer in sorted(found)]


def _filled(factor: Tensor, by: tuple[int, ...]) -> Tensor:
    """`F.pad` with zeros, which copies even where there are none to add."""
    return F.pad(factor, by) if any(by) else factor


def _arrow(size: tuple[int, int]) -> str:
    return f"{size[0]} -> {size[1]}"
