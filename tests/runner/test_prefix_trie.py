"""The trie finds what a search through all items would find."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

from ollmlx.runner.mlx.prefix_trie import PrefixTrie, as_tokens, common_prefix


@dataclass(eq=False)
class Item:
    tokens: np.ndarray
    cuttable: bool


def usable(item: Item, tokens: np.ndarray) -> int:
    common = common_prefix(item.tokens, tokens)
    return common if item.cuttable or common == len(item.tokens) else 0


@pytest.mark.parametrize("seed", range(20))
def test_against_a_search_through_all(seed: int) -> None:
    rng = random.Random(seed)
    trie: PrefixTrie[Item] = PrefixTrie()
    items: list[Item] = []

    def some_tokens() -> np.ndarray:
        # Few different tokens, so that most share beginnings.
        return as_tokens([rng.randrange(2) for _ in range(rng.randrange(1, 12))])

    for _ in range(300):
        if items and rng.random() < 0.4:
            gone = items.pop(rng.randrange(len(items)))
            trie.remove(gone)
        else:
            item = Item(some_tokens(), rng.random() < 0.5)
            replaced = trie.add(item)
            same = [i for i in items if np.array_equal(i.tokens, item.tokens)]
            assert same == ([] if replaced is None else [replaced])
            items = [i for i in items if i not in same] + [item]
        wanted = some_tokens()
        found = trie.longest(wanted)
        best = max((usable(i, wanted) for i in items), default=0)
        assert (found[1] if found else 0) == best
        if found and found[1]:
            assert usable(found[0], wanted) == best
        covers = [i for i in items if usable(i, wanted) == len(wanted)]
        covering = trie.covering(wanted)
        assert covering in covers if covers else covering is None
        real = {id(i) for i in items if usable(i, wanted) == len(i.tokens) < len(wanted)}
        assert {id(i) for i in trie.shorter(wanted)} == real


def test_what_is_not_there_cannot_be_removed() -> None:
    trie: PrefixTrie[Item] = PrefixTrie()
    trie.add(Item(as_tokens([1, 2, 3]), True))
    with pytest.raises(KeyError):
        trie.remove(Item(as_tokens([1, 2, 3]), True))
