"""The rows that decode together and their shared key-value cache, which rows join and leave between two tokens.

Where memory runs out in the middle of a change, the batch is as it was before: its chats go on.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

Row = TypeVar("Row")
ROOM = 64  # columns more than asked for that a cache gets when it grows, and an eighth of those it has


class RoomyLayer(DynamicLayer):
    """A `DynamicLayer` with room around it: tokens and rows are written in place, where the original copies the rest.

    What is used are the first rows of `room`, in columns from `start` on; there the rows end together, so that the
    columns before the shorter ones are padding.
    """

    room: tuple[Tensor, ...] = ()  # keys, values [rows or more, heads, capacity, d]; self.keys, self.values are in it
    start = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append states [rows, heads, n, d]; returns all keys and values."""
        length, n = self.get_seq_length(), key_states.shape[-2]
        if length == 0:  # the prompt: no copy yet
            self.lazy_initialization(key_states, value_states)
            self.room, self.start = (key_states, value_states), 0
        else:
            self.reserve(right=n)
            end = self.start + length
            for side, states in zip(self.room, (key_states, value_states), strict=True):
                side[: len(states), :, end : end + n] = states
        self.show(len(key_states), length + n)
        return self.keys, self.values

    def reserve(self, rows: int = 0, left: int = 0, right: int = 0) -> None:
        """Make room for so many rows more than are used, and columns on either side."""
        used, _, length, _ = self.keys.shape
        have, _, capacity, _ = self.room[0].shape
        more_left, more_right = left > self.start, right > capacity - self.start - length
        if used + rows <= have and not more_left and not more_right:
            return
        if used + rows > have:
            have = 1 << (used + rows - 1).bit_length()  # a power of two, so that who joins seldom makes a copy
        slack = ROOM + length // 8
        left += slack if more_left else 0
        right += slack if more_right else 0
        sizes = (0, 0, left, right, 0, 0, 0, have - used)
        self.room = tuple(F.pad(side, sizes) for side in (self.keys, self.values))
        self.start = left
        self.show(used, length)

    @property
    def columns(self) -> int:
        """Those from `start` on, used or not."""
        return self.room[0].shape[-2] - self.start

    def seen(self, side: int, columns: int) -> Tensor:
        """The keys (0) or values (1) of the rows that are used in so many columns from `start` on."""
        return self.room[side][: len(self.keys), :, self.start : self.start + columns]

    def put(self, row: int, sides: Sequence[Tensor]) -> None:
        """Write a row's keys and values [heads, n, d] so that they end where those of the rows that are used do."""
        end = self.start + self.get_seq_length()
        for side, states in zip(self.room, sides, strict=True):
            side[row, :, end - states.shape[-2] : end] = states

    def show(self, rows: int, length: int) -> None:
        """Use the first `rows` rows and, from `start` on, `length` columns."""
        self.keys, self.values = (side[:rows, :, self.start : self.start + length] for side in self.room)


@dataclass
class Batch(Generic[Row]):
    """`rows`, and in `cache` their `length` columns of keys and values, of which row i's first `pad[i]` are padding."""

    rows: list[Row] = field(default_factory=list)
    cache: Cache = field(default_factory=lambda: Cache(layer_class_to_replicate=RoomyLayer))
    pad: Tensor | None = None  # [rows] int64; None while there are no rows
    length: int = 0


def select(batch: Batch[Row], keep: list[int]) -> Batch[Row]:
    """The batch without the rows that left, nor the columns that only they used; `batch` itself is used up.

    The last rows take the places of those that left, in memory that is there; most of it is given back where little of
    it is used. Columns after `batch.length`, which a forward that failed may have left in some layers, go too.
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
        layer.show(len(batch.rows), batch.length)
        for side in (layer.keys, layer.values):
            for place, row in moved.items():
                side[place] = side[row]
        layer.start += cut
        layer.show(len(order), batch.length - cut)
        if layer.room[0].shape[-2] > 4 * (batch.length - cut + ROOM):
            with suppress(RuntimeError):  # out of memory: then it stays
                layer.room, layer.start = tuple(F.pad(side, (0, 0, 0, ROOM)) for side in (layer.keys, layer.values)), 0
                layer.show(len(order), batch.length - cut)
    return Batch([batch.rows[i] for i in order], batch.cache, pad - cut, batch.length - cut)


def merge(a: Batch[Row], b: Batch[Row]) -> Batch[Row]:
    """Both batches as one, of the cache of `a`, in whose room the rows of `b` are written; `a` and `b` are used up.

    Where that fails, `a` still has its rows and columns.
    """
    if not a.rows or not b.rows:
        return a if a.rows else b
    length = max(a.length, b.length)
    left, pads = length - a.length, b.pad.tolist()
    for layer in a.cache.layers:  # all of them, before any is changed
        layer.reserve(len(b.rows), left)
    for mine, other in zip(a.cache.layers, b.cache.layers, strict=True):
        for i, pad in enumerate(pads):
            mine.put(len(a.rows) + i, [side[i, :, pad : b.length] for side in (other.keys, other.values)])
        mine.start -= left
        mine.show(len(a.rows) + len(b.rows), length)
    pad = torch.cat([a.pad + left, b.pad + length - b.length])
    return Batch(a.rows + b.rows, a.cache, pad, length)
