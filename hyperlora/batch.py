"""The rows that decode together and their shared key-value cache, which rows join and leave between two tokens."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

Row = TypeVar("Row")
ROOM = 64  # columns that a cache grows by at a time


class RoomyLayer(DynamicLayer):
    """A `DynamicLayer` with room at the end: a token is written in place, where the original copies all before it."""

    room: tuple[Tensor, Tensor] | None = None  # keys, values [rows, heads, capacity, d]; self.keys is a beginning

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append states [rows, heads, n, d]; returns all keys and values."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if start == 0:  # the prompt: no copy yet
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values, self.room = key_states, value_states, None
            return self.keys, self.values
        if self.room is None or self.room[0].shape[-2] < end:
            more = end - start + ROOM
            self.room = F.pad(self.keys, (0, 0, 0, more)), F.pad(self.values, (0, 0, 0, more))
        keys, values = self.room
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.room = keys, values, None


@dataclass
class Batch(Generic[Row]):
    """`rows`, and in `cache` their `length` columns of keys and values, of which row i's first `pad[i]` are padding."""

    rows: list[Row] = field(default_factory=list)
    cache: Cache = field(default_factory=lambda: Cache(layer_class_to_replicate=RoomyLayer))
    pad: Tensor | None = None  # [rows] int64; None while there are no rows
    length: int = 0


def select(batch: Batch[Row], keep: list[int]) -> Batch[Row]:
    """The batch without the rows that left, nor the columns that only they used; `batch` itself is used up."""
    if len(keep) == len(batch.rows):
        return batch
    if not keep:
        return Batch()
    index = torch.tensor(keep, device=batch.pad.device)
    pad = batch.pad[index]
    cut = int(pad.min())
    for layer in batch.cache.layers:
        rows = index.to(layer.keys.device)  # a base may have layers on several devices
        layer.replace(layer.keys[rows, :, cut:], layer.values[rows, :, cut:])
    return Batch([batch.rows[i] for i in keep], batch.cache, pad - cut, batch.length - cut)


def merge(a: Batch[Row], b: Batch[Row]) -> Batch[Row]:
    """Both batches as one, the shorter cache padded on the left; `a` and `b` are used up."""
    if not a.rows or not b.rows:
        return a if a.rows else b
    length = max(a.length, b.length)
    left_a, left_b = length - a.length, length - b.length
    for mine, other in zip(a.cache.layers, b.cache.layers, strict=True):
        mine.replace(
            torch.cat([F.pad(mine.keys, (0, 0, left_a, 0)), F.pad(other.keys, (0, 0, left_b, 0))]),
            torch.cat([F.pad(mine.values, (0, 0, left_a, 0)), F.pad(other.values, (0, 0, left_b, 0))]),
        )
    return Batch(a.rows + b.rows, a.cache, torch.cat([a.pad + left_a, b.pad + left_b]), length)
