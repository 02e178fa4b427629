"""Which documents of a pack compute their beginning together: the choice that saves most tokens.

Documents that begin alike form a tree: a node is a run of tokens that at least two of them begin with, as long as it is for
just those documents; deeper nodes are longer beginnings of fewer documents. A document may continue one node's tokens (one
level of sharing is what attention knows), so the question is which nodes are computed. Each computed node costs its tokens
once and saves them in every document that continues it; a document continues the deepest computed node above it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MIN_PREFIX = 8
"""Tokens documents must begin with in common before their prefix is shared."""
MIN_SAVED = 8
"""Tokens a shared prefix must save over doing without it: it is a segment of its own, and attention pays for each."""

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Group:
    """members: indices of documents, in the order of their tokens. prefix: tokens of it that are computed once, 0 for none."""

    members: tuple[int, ...]
    prefix: int


@dataclass
class _Node:
    """A common beginning. depth: its tokens. parent: index of the node above, -1 for the root. leaves: documents (places in
    sorted order) that have no deeper node of their own. best: for each node above it, root first, the tokens its documents
    save if that is the deepest computed one above; computed: whether this node is then computed too."""

    depth: int
    parent: int = -1
    leaves: list[int] = field(default_factory=list)
    best: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    computed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


def share(documents: Sequence[Tokens]) -> list[Group]:
    """Groups of documents that share a prefix, each leaving at least one token to every member, and last those that share
    none. The tokens saved are the most that one level of sharing can save, less ``MIN_SAVED`` a prefix."""
    order = sorted(range(len(documents)), key=lambda i: _key(documents[i]))
    common = [_common(documents[a], documents[b]) for a, b in pairwise(order)]
    if not any(common):
        return [Group(tuple(order), 0)] if order else []
    nodes = _tree(common)
    _choose(nodes)
    members: dict[int, list[int]] = {}
    for node, prefix in zip(nodes, _deepest_computed(nodes)):
        members.setdefault(prefix, []).extend(node.leaves)
    groups = [Group(tuple(order[i] for i in sorted(places)), nodes[n].depth) for n, places in sorted(members.items()) if places]
    return sorted(groups, key=lambda group: group.prefix == 0)


def saved(groups: Sequence[Group]) -> int:
    """Tokens that need not be computed."""
    return sum((len(group.members) - 1) * group.prefix for group in groups)


def _key(tokens: Tokens) -> bytes:
    """Bytes that sort as the tokens do."""
    return tokens.astype(">i4").tobytes()


def _common(a: Tokens, b: Tokens) -> int:
    """Tokens both begin with, 0 if too few; each keeps at least one token of its own."""
    limit = min(len(a), len(b)) - 1
    differ = a[:limit] != b[:limit]
    length = int(differ.argmax()) if differ.any() else max(limit, 0)
    return length if length >= MIN_PREFIX else 0


def _tree(common: Sequence[int]) -> list[_Node]:
    """Nodes, parents before children and the root first, of documents in sorted order, neighbours having so many tokens in
    common. As lcp intervals are found: Abouelhoda, Kurtz, Ohlebusch 2004, algorithm 4.4."""
    nodes, path = [_Node(0)], [0]  # path: nodes from the root to the last document
    for place in range(len(common) + 1):
        before = common[place - 1] if place else 0
        after = common[place] if place < len(common) else 0
        last = -1
        while nodes[path[-1]].depth > before:
            last = path.pop()
        if nodes[path[-1]].depth < before:  # a beginning that the nodes just left and this document have in common
            nodes.append(_Node(before, path[-1]))
            nodes[last].parent = len(nodes) - 1
            path.append(len(nodes) - 1)
        if after > nodes[path[-1]].depth:
            nodes.append(_Node(after, path[-1]))
            path.append(len(nodes) - 1)
        nodes[path[-1]].leaves.append(place)
    return _by_depth(nodes)


def _by_depth(nodes: list[_Node]) -> list[_Node]:
    """The same, shallow before deep, so that parents stand before their children."""
    order = sorted(range(len(nodes)), key=lambda i: nodes[i].depth)
    place = {old: new for new, old in enumerate(order)}
    for node in nodes:
        node.parent = place.get(node.parent, -1)
    return [nodes[i] for i in order]


def _choose(nodes: list[_Node]) -> None:
    """Fill in ``best`` and ``computed``, children before parents."""
    depths: list[NDArray[np.int64]] = []  # of the nodes from the root down to this one
    for node in nodes:
        above = depths[node.parent] if node.parent >= 0 else np.zeros(0, np.int64)
        depths.append(np.append(above, node.depth))
    saves = [len(node.leaves) * above for node, above in zip(nodes, depths)]
    for index in range(len(nodes) - 1, 0, -1):
        node = nodes[index]
        own = saves[index][-1] - node.depth - MIN_SAVED
        node.computed = saves[index][:-1] <= own
        node.best = np.maximum(saves[index][:-1], own)
        saves[node.parent] = saves[node.parent] + node.best


def _deepest_computed(nodes: list[_Node]) -> list[int]:
    """For each node the deepest computed one on its path, itself included; 0, the root, for none."""
    chosen = [0]
    level = [0]  # how far down the path that one stands
    steps = [0]
    for index, node in enumerate(nodes[1:], 1):
        steps.append(steps[node.parent] + 1)
        computed = bool(node.computed[level[node.parent]])
        chosen.append(index if computed else chosen[node.parent])
        level.append(steps[index] if computed else level[node.parent])
    return chosen
