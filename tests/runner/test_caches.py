"""KV caches of rows and batches: what is done to them in other ways than mlx-lm's comes to the same."""

from __future__ import annotations

import copy

import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_cache

from ollmlx.runner.mlx.mlxlm import caches as kv


def feed(cache: object, tokens: int, rows: int = 1) -> None:
    cache.update_and_fetch(mx.random.normal((rows, 2, tokens, 8)), mx.random.normal((rows, 2, tokens, 4)))


def alone(tokens: int) -> mlx_cache.KVCache:
    cache = mlx_cache.KVCache()
    feed(cache, tokens)
    return cache


def test_layers_share_their_positions() -> None:
    caches = [mlx_cache.BatchKVCache([0, 2]) for _ in range(3)]
    for _ in range(2):
        kv.share_positions(caches)
        assert all(c.offset is caches[0].offset for c in caches)
        for cache in caches:
            cache.update_and_fetch(mx.ones((2, 1, 1, 8)), mx.ones((2, 1, 1, 8)))
    assert [c.offset.tolist() for c in caches] == [[2, 0]] * 3
    others = [mlx_cache.BatchKVCache([0]), mlx_cache.BatchRotatingKVCache(8, [0])]
    kv.share_positions(others)
    assert others[0].offset is not others[1].offset


def test_a_long_prompt_makes_its_cache_grow_once() -> None:
    cache = alone(3)
    kv.make_room([cache], 900)
    feed(cache, 300)
    keys = cache.keys
    for _ in range(6):
        feed(cache, 100)
        assert cache.keys.shape == keys.shape
    assert cache.size() == 903
    kv.make_room([cache], 1)
    feed(cache, 600)
    assert cache.keys.shape[2] - cache.size() < mlx_cache.KVCache.step


@pytest.mark.parametrize("rows", [1, 2])
def test_layers_grow_at_different_steps(rows: int) -> None:
    if rows == 1:
        caches = [mlx_cache.KVCache() for _ in range(6)]
        kv.make_room(caches, 3)
        for cache in caches:
            feed(cache, 3)
    else:
        caches = [mlx_cache.BatchKVCache.merge([alone(3), alone(5)]) for _ in range(6)]
    rotating = mlx_cache.RotatingKVCache(8)
    kv.make_room([*caches, rotating], 1)
    assert rotating.step == mlx_cache.RotatingKVCache.step
    grown: list[list[int]] = []
    for step in range(700):
        sizes = [c.keys.shape[2] for c in caches]
        for cache in caches:
            feed(cache, 1, rows)
        grown.append([i for i, c in enumerate(caches) if c.keys.shape[2] != sizes[i]])
        if step > 0:
            assert len(grown[-1]) <= 1
    assert sorted(i for layers in grown[1:] for i in layers)[:6] == [0, 0, 1, 1, 2, 2]


def test_layers_of_several_caches_have_no_more_room_than_others() -> None:
    several = mlx_cache.CacheList(mlx_cache.ArraysCache(1), mlx_cache.KVCache())
    kv.make_room([several], 900)
    feed(several[1], 900)
    kv.make_room([several], 1)
    feed(several[1], 400)
    assert several[1].keys.shape[2] - several[1].size() < mlx_cache.KVCache.step + 16


def test_a_copy_has_what_is_used_and_stays() -> None:
    """Of recurrent state too, which has no room."""
    state = mlx_cache.ArraysCache(1)
    state[0] = mx.ones((1, 3))
    cache = mlx_cache.KVCache()
    kv.make_room([cache], 900)
    feed(cache, 10)
    copies = kv.copied([state, cache, mlx_cache.KVCache()])
    assert copies[1].keys.shape[2] == 10
    before = [mx.array(a) for a in copies[1].keys_and_values()]
    feed(cache, 5)
    state[0] = state[0] + 1
    assert copies[1].size() == 10
    assert all(mx.array_equal(a, b) for a, b in zip(before, copies[1].keys_and_values(), strict=True))
    assert mx.array_equal(copies[0][0], mx.ones((1, 3)))
    feed(copies[1], 1)
    assert copies[1].keys.shape[2] <= 10 + mlx_cache.KVCache.step


@pytest.mark.parametrize(
    ("mine", "other", "joined"),
    [
        ((4, 9), (7,), False),
        ((4, 9), (700,), False),
        ((4, 9), (7,), True),
        ((300,), (2, 5), True),
        ((3,), (520, 8), True),
        ((6, 6), (7,), False),
    ],
)
def test_rows_join_as_in_mlx_lm(mine: tuple[int, ...], other: tuple[int, ...], joined: bool) -> None:
    batch = mlx_cache.BatchKVCache.merge([alone(n) for n in mine])
    # One that has decoded has room, and one that has not has none.
    feed(batch, 1, rows=len(mine))
    guests = [alone(n) for n in other]
    guest = mlx_cache.BatchKVCache.merge(guests) if joined else guests[0]
    expected = copy.deepcopy(batch)
    expected.extend(mlx_cache.BatchKVCache.merge(guests))
    kv.extend([batch], [guest], joined)
    rows = len(mine) + len(other)
    keys, values = mx.random.normal((rows, 2, 1, 8)), mx.random.normal((rows, 2, 1, 4))
    for cache in (batch, expected):
        cache.update_and_fetch(keys, values)
    assert batch.size() == expected.size()
    for ours, theirs in (
        *zip(batch.keys_and_values(), expected.keys_and_values(), strict=True),
        (batch.offset, expected.offset),
        (batch.left_padding, expected.left_padding),
        (batch.make_mask(1), expected.make_mask(1)),
    ):
        assert mx.array_equal(ours, theirs)


def test_other_caches_join_by_their_own_rules() -> None:
    batch = [mlx_cache.BatchRotatingKVCache.merge([mlx_cache.RotatingKVCache(8)])]
    feed(batch[0], 4)
    row = mlx_cache.RotatingKVCache(8)
    feed(row, 6)
    kv.extend(batch, [row], False)
    assert batch[0].offset.tolist() == [4, 6]


def test_a_row_joins_rows_that_have_nothing_yet() -> None:
    batch = mlx_cache.BatchKVCache([0, 0])
    kv.extend([batch], [alone(5)], False)
    assert batch.size() == 5
    assert batch.left_padding.tolist() == [5, 5, 0]
