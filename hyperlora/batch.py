"""The rows that decode together and their shared key-value cache, which rows join and leave between two tokens.

Where memory runs out in the middle of a change, the batch is as it was before: its chats go on.
"""

from collections.abc import Sequence
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

    room: tuple[Tensor, ...] = ()  # keys, values [rows, heads, capacity, d]; self.keys and self.values are beginnings

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append states [rows, heads, n, d]; returns all keys and values."""
        start, n = self.get_seq_length(), key_states.shape[-2]
        if start == 0:  # the prompt: no copy yet
            self.lazy_initialization(key_states, value_states)
            self.show((key_states, value_states), n)
            return self.keys, self.values
        self.reserve(start + n)
        for side, states in zip(self.room, (key_states, value_states), strict=True):
            side[:, :, start : start + n] = states
        self.show(self.room, start + n)
        return self.keys, self.values

    def reserve(self, length: int) -> None:
        """Make room for `length` columns."""
        if self.room[0].shape[-2] < length:
            more = length - self.get_seq_length() + ROOM
            self.room = tuple(F.pad(side, (0, 0, 0, more)) for side in (self.keys, self.values))

    def show(self, room: Sequence[Tensor], length: int) -> None:
        """Take `room`, of which the first `length` columns are filled."""
        self.room = tuple(room)
        self.keys, self.values = (side[:, :, :length] for side in room)


@dataclass
class Batch(Generic[Row]):
    """`rows`, and in `cache` their `length` columns of keys and values, of which row i's first `pad[i]` are padding."""

    rows: list[Row] = field(default_factory=list)
    cache: Cache = field(default_factory=lambda: Cache(layer_class_to_replicate=RoomyLayer))
    pad: Tensor | None = None  # [rows] int64; None while there are no rows
    length: int = 0


def select(batch: Batch[Row], keep: list[int]) -> Batch[Row]:
    """The batch without the rows that left, nor the columns that only they used; `batch` itself is used up.

    The last rows take the places of those that left, in memory that is there. Columns after `batch.length`, which a
    forward that failed may have left in some layers, go too.
    """
    if len(keep) == len(batch.rows):
        return batch
    if not keep:
        return Batch()
    moved = dict(zip(set(range(len(keep))) - set(keep), [row for row in keep if row >= len(keep)], strict=True))
    order = [moved.get(place, place) for place in range(len(keep))]
    pad = batch.pad[torch.tensor(order, device=batch.pad.device)]
    cut = int(pad.min())
    for layer in batch.cache.layers:
        for side in layer.room:
            for place, row in moved.items():
                side[place] = side[row]
        layer.show([side[: len(order), :, cut:] for side in layer.room], batch.length - cut)
    return Batch([batch.rows[i] for i in order], batch.cache, pad - cut, batch.length - cut)


def merge(a: Batch[Row], b: Batch[Row]) -> Batch[Row]:
    """Both batches as one, the shorter cache padded on the left; `a` and `b` are used up.

    Layer by layer, so that no more than one is held twice. Where one fails, `a` still has its rows and columns.
    """
    if not a.rows or not b.rows:
        return a if a.rows else b
    length = max(a.length, b.length)
    left_a, left_b = length - a.length, length - b.length
    done, pad = [], torch.cat([a.pad + left_a, b.pad + left_b])
    try:
        for mine, other in zip(a.cache.layers, b.cache.layers, strict=True):
            pairs = (mine.keys, other.keys), (mine.values, other.values)
            room = [torch.cat([F.pad(x, (0, 0, left_a, ROOM)), F.pad(y, (0, 0, left_b, ROOM))]) for x, y in pairs]
            mine.show(room, length)
            done.append(mine)
    except BaseException:
        for layer in done:  # what it had lies in what it has
            layer.show([side[: len(a.rows), :, left_a:] for side in layer.room], a.length)
        raise
    return Batch(a.rows + b.rows, a.cache, pad, length)
