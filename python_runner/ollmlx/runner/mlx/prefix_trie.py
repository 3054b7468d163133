"""Sequences of tokens in a trie, for the question which of them share a beginning with another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np


class Item(Protocol):
    """What a trie holds: something that was computed for a sequence of tokens."""

    tokens: np.ndarray
    # It can be shortened to any prefix of its tokens, else it is for all of them or nothing.
    cuttable: bool


I = TypeVar("I", bound=Item)  # noqa: E741


class _Node(Generic[I]):
    __slots__ = ("children", "edge", "item", "parent")

    def __init__(self, edge: np.ndarray, parent: _Node[I] | None) -> None:
        # Tokens between the parent and this node; branches are keyed by their first.
        self.edge = edge
        self.parent = parent
        self.children: dict[int, _Node[I]] = {}
        self.item: I | None = None

    def items(self) -> Iterator[I]:
        stack = [self]
        while stack:
            node = stack.pop()
            if node.item is not None:
                yield node.item
            stack.extend(node.children.values())


class PrefixTrie(Generic[I]):
    """At most one item for each sequence. A lookup costs as much as comparing with one sequence, however many there
    are."""

    def __init__(self) -> None:
        self._root: _Node[I] = _Node(np.empty(0, np.int32), None)

    @property
    def empty(self) -> bool:
        return self._root.item is None and not self._root.children

    def longest(self, tokens: np.ndarray) -> tuple[I, int] | None:
        """The item that serves for the most of `tokens`, from their start, and for how many of them."""
        path, _ = self._walk(tokens)
        for node, common in reversed(path):
            if node.item is not None and common == len(node.item.tokens):
                return node.item, common
            cuttable = next((i for i in node.items() if i.cuttable), None)
            if cuttable is not None:
                return cuttable, common
        return None

    def covering(self, tokens: np.ndarray) -> I | None:
        """An item that serves for all of `tokens`."""
        found = self.longest(tokens)
        return found[0] if found is not None and found[1] == len(tokens) else None

    def shorter(self, tokens: np.ndarray) -> list[I]:
        """The items of real prefixes of `tokens`."""
        path, _ = self._walk(tokens)
        items = [n.item for n, common in path if n.item is not None and common == len(n.item.tokens)]
        return [i for i in items if len(i.tokens) < len(tokens)]

    def add(self, item: I) -> I | None:
        """Put an item in; returns the one of the same tokens that it replaces."""
        tokens = item.tokens
        path, inside = self._walk(tokens)
        node, common = path[-1]
        if inside:
            node = self._split(node, inside)
        if common < len(tokens):
            child = _Node(tokens[common:], node)
            node.children[int(tokens[common])] = child
            node = child
        replaced, node.item = node.item, item
        return replaced

    def remove(self, item: I) -> None:
        path, _ = self._walk(item.tokens)
        node = path[-1][0]
        if node.item is not item:
            raise KeyError("the item is not in the trie")
        node.item = None
        while node.parent is not None and node.item is None and len(node.children) < 2:
            parent = node.parent
            if node.children:
                # One branch and nothing of its own: its branch takes its place.
                [child] = node.children.values()
                child.edge = np.concatenate([node.edge, child.edge])
                child.parent = parent
                parent.children[int(child.edge[0])] = child
                return
            del parent.children[int(node.edge[0])]
            node = parent

    def _walk(self, tokens: np.ndarray) -> tuple[list[tuple[_Node[I], int]], int]:
        """The nodes on the way along `tokens`, each with how many of them it shares, and how far into the last one's
        edge the way went, 0 for all of it."""
        node, depth = self._root, 0
        path = [(node, 0)]
        while depth < len(tokens) and (child := node.children.get(int(tokens[depth]))) is not None:
            common = common_prefix(child.edge, tokens[depth:])
            depth += common
            path.append((child, depth))
            if common < len(child.edge):
                return path, common
            node = child
        return path, 0

    @staticmethod
    def _split(node: _Node[I], at: int) -> _Node[I]:
        """Cut the edge that leads to `node`; returns the node in its middle."""
        upper: _Node[I] = _Node(node.edge[:at], node.parent)
        node.parent.children[int(node.edge[0])] = upper
        node.edge = node.edge[at:]
        node.parent = upper
        upper.children[int(node.edge[0])] = node
        return upper


def as_tokens(tokens: Sequence[int]) -> np.ndarray:
    return np.asarray(tokens, dtype=np.int32)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
