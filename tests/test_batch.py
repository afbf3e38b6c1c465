"""Rows that join and leave a shared cache, also where memory runs out half-way."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hyperlora.batch import ROOM, Batch, merge, select
from hyperlora.memory import BaseShape, cache

LAYERS, HEADS, D = 3, 2, 4


def batch_of(rows: str, lengths: list[int], seed: int = 0) -> Batch[str]:
    """Rows named by letters, prefilled with random states, the shorter ones padded on the left."""
    length = max(lengths)
    batch = Batch(list(rows), pad=torch.tensor([length - n for n in lengths]), length=0)
    append(batch, length, seed)
    return batch


def append(batch: Batch[str], n: int, seed: int) -> None:
    """`n` columns of random states in every layer."""
    torch.manual_seed(seed)
    for layer in range(LAYERS):
        states = [torch.randn(len(batch.rows), HEADS, n, D) for _ in range(2)]
        for returned, side in zip(batch.cache.update(*states, layer), states, strict=True):
            assert torch.equal(returned[:, :, -n:], side)
    batch.length += n


def content(batch: Batch[str]) -> dict[str, list[torch.Tensor]]:
    """Each row's keys and values in every layer, without its padding."""
    assert {layer.keys.shape[-2] for layer in batch.cache.layers} == {batch.length}
    return {
        row: [side[i, :, pad:].clone() for layer in batch.cache.layers for side in (layer.keys, layer.values)]
        for i, (row, pad) in enumerate(zip(batch.rows, batch.pad.tolist(), strict=True))
    }


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for row, tensors in expected.items():
        assert all(map(torch.equal, found[row], tensors))


@pytest.fixture
def memory(monkeypatch):
    """memory(n): the next n allocations of this module succeed, and then one fails."""

    def set_left(n: int) -> None:
        left = iter(range(n))

        def pad(*args):
            if next(left, None) is None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return F.pad(*args)

        monkeypatch.setattr("hyperlora.batch.F", SimpleNamespace(pad=pad))

    return set_left


@pytest.mark.parametrize("keep", [[0], [3], [0, 1, 2], [1, 3], [0, 2, 4], [2, 3, 4], [0, 1, 2, 3, 4], []])
def test_rows_that_stay_keep_their_columns(keep):
    batch = batch_of("abcde", [7, 3, 5, 2, 6])
    append(batch, 1, seed=1)
    before = content(batch)
    smaller = select(batch, keep)
    assert sorted(smaller.rows) == ["abcde"[i] for i in keep]
    if keep:
        assert_same(content(smaller), {row: before[row] for row in smaller.rows})
        assert smaller.length == 1 + max([7, 3, 5, 2, 6][i] for i in keep)


def test_rows_join_leave_and_go_on():
    a, b = batch_of("ab", [3, 5]), batch_of("cd", [9, 2], seed=1)
    expected = content(a) | content(b)
    both = merge(a, b)
    assert both.length == 9
    assert_same(content(both), expected)
    append(both, 1, seed=2)
    both = select(both, [0, 2, 3])
    for i in range(2 * ROOM):  # it grows more than once
        append(both, 1, seed=3 + i)
    found = content(both)
    for row in "acd":
        length = expected[row][0].shape[-2]
        assert all(torch.equal(x[:, :length], y) for x, y in zip(found[row], expected[row], strict=True))
        assert {x.shape[-2] for x in found[row]} == {length + 1 + 2 * ROOM}


@pytest.mark.parametrize("allocations", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("lengths", [(3, 5), (5, 3), (4, 4)], ids=str)
def test_rows_that_cannot_join_leave_the_others_as_they_were(memory, allocations, lengths):
    a, b = batch_of("ab", [lengths[0], 2]), batch_of("c", [lengths[1]], seed=1)
    before, joining = content(a), content(b)
    memory(allocations)
    with pytest.raises(torch.OutOfMemoryError):
        merge(a, b)
    assert_same(content(a), before)
    memory(1000)
    append(a, 1, seed=2)  # and they go on
    for row, tensors in before.items():
        assert all(torch.equal(x[:, :-1], y) for x, y in zip(content(a)[row], tensors, strict=True))
    expected = content(a) | joining
    assert_same(content(merge(a, b)), expected)


@pytest.mark.parametrize("lengths", [[9, 2], [2, 1], [70, 3]], ids=str)
def test_who_joins_or_leaves_copies_nobody_else(memory, lengths):
    """Once there is room: rows and columns are where they were, and those that came are in the room beside them."""
    a = merge(batch_of("a", [9]), batch_of("b", [4], seed=1))  # two rows, and room for two more
    a = merge(a, batch_of("c", [80], seed=2))  # a prompt longer than what there was: room on the left
    expected = content(a)
    a = select(a, [0, 1])
    where = [side.data_ptr() for layer in a.cache.layers for side in layer.room]
    memory(0)
    b = batch_of("de", lengths, seed=3)
    expected |= content(b)
    a = merge(a, b)
    assert [side.data_ptr() for layer in a.cache.layers for side in layer.room] == where
    assert_same(content(a), {row: expected[row] for row in "abde"})
    assert a.length == max(9, *lengths)


def test_many_rows_take_the_memory_that_is_planned_and_the_room_beside_it():
    shape = BaseShape(LAYERS, HEADS * D, 1, HEADS, HEADS, D, 1)
    planned = cache(shape, rows=16, tokens=300 + 300 // 8 + ROOM, element=4)
    batch = Batch()
    for i, length in enumerate([40, 250, 3, 200, *range(60, 260, 20), 251, 7]):  # each joins after ten tokens of all
        batch = merge(batch, batch_of(chr(97 + i), [length], seed=i))
        for _ in range(3):
            append(batch, 1, seed=i)
    assert len(batch.rows) == 16 and batch.length <= 300
    assert sum(side.nbytes for layer in batch.cache.layers for side in layer.room) <= planned


def test_memory_that_few_use_is_given_back():
    batch = batch_of("abcd", [2_000, 5, 4, 3])
    append(batch, 1, seed=1)
    before = content(batch)
    batch = select(batch, [1, 2, 3])
    assert all(side.numel() == 3 * HEADS * (6 + ROOM) * D for layer in batch.cache.layers for side in layer.room)
    assert_same(content(batch), {row: before[row] for row in "bcd"})


@pytest.mark.parametrize("allocations", [0, 1, 2, 3, 5])
def test_a_token_for_which_there_is_no_room_can_be_taken_back(memory, allocations):
    batch = batch_of("abc", [4, 2, 3])
    before = content(batch)
    memory(allocations)
    with pytest.raises(torch.OutOfMemoryError):
        append(batch, 1, seed=1)  # some layers have it, some have not
    assert_same(content(select(batch, [0, 2])), {row: before[row] for row in "ac"})
