"""PrefixIndex: which beginnings of prompts have their pages and a state in the cache.

A tree whose edges are blocks of tokens.  A node holds the pages of its block and, if a snapshot was taken after it,
the slot with the state of all tokens up to its end.  Attention needs the pages and the delta rule needs the state, so
a prompt can go on only from a node with a snapshot.  Every leaf has one: snapshots are evicted, least recently used
first, and a branch goes with its last snapshot.  Edges are compared token by token, so a hit is exact.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hotstart.cache.pool import Pool

__all__ = ["Match", "PrefixIndex"]


class Match(NamedTuple):
    """What the index knows of a prompt."""

    length: int = 0  # tokens that need not be computed
    pages: tuple[int, ...] = ()  # theirs
    slot: int | None = None  # the state after them
    shared: int = 0  # tokens, at least `length`, that a cached prompt begins with too


@dataclass(slots=True, eq=False)
class _Node:
    parent: "_Node | None"
    key: bytes
    pages: tuple[int, ...]
    slot: int | None = None
    children: dict[bytes, "_Node"] = field(default_factory=dict)


class PrefixIndex:
    """`block_length` is a multiple of the page size: no page is shared that is still being written."""

    def __init__(self, pages: Pool, slots: Pool, page_size: int, block_length: int) -> None:
        assert block_length % page_size == 0, f"blocks of {block_length} tokens do not fill pages of {page_size}"
        self.block_length = block_length
        self._pages = pages
        self._slots = slots
        self._pages_per_block = block_length // page_size
        self._root = _Node(None, b"", ())
        self._snapshots: OrderedDict[_Node, None] = OrderedDict()  # least recently used first

    def keys_of(self, prompt: Sequence[int]) -> tuple[bytes, ...]:
        """The prompt's blocks, without its last token: from that one on something must be left to compute."""
        size = self.block_length
        ends = range(size, len(prompt), size)
        return tuple(array("i", prompt[end - size : end]).tobytes() for end in ends)

    def match(self, keys: Sequence[bytes]) -> Match:
        """The longest beginning that can be resumed; the caller refers to it before it lets anything be evicted."""
        node, path, hit = self._root, [], 0
        for key in keys:
            child = node.children.get(key)
            if child is None:
                break
            node = child
            path.append(node)
            if node.slot is not None:
                hit = len(path)
        if not hit:
            return Match(shared=len(path) * self.block_length)
        resumed = path[hit - 1]
        self._snapshots.move_to_end(resumed)
        pages = tuple(page for node in path[:hit] for page in node.pages)
        return Match(hit * self.block_length, pages, resumed.slot, len(path) * self.block_length)

    def insert(self, keys: Sequence[bytes], pages: Sequence[int], slot: int) -> None:
        """Keep the state after `keys` and the pages of those blocks that were not known."""
        node, size = self._root, self._pages_per_block
        for i, key in enumerate(keys):
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = _Node(node, key, tuple(pages[i * size : (i + 1) * size]))
                self._pages.keep(child.pages)
            node = child
        if node.slot is None:
            node.slot = slot
            self._slots.keep((slot,))
            self._snapshots[node] = None

    def evict(self, pool: Pool, count: int) -> None:
        """Forget snapshots until the pool, of pages or of slots, has `count` free ids or nothing is left to forget."""
        while pool.num_free < count and self._snapshots:
            node, _ = self._snapshots.popitem(last=False)
            assert node.slot is not None, "a node without a snapshot is listed as one"
            self._slots.drop((node.slot,))
            node.slot = None
            while node.parent is not None and node.slot is None and not node.children:
                self._pages.drop(node.pages)
                del node.parent.children[node.key]
                node = node.parent

    def kept_pages(self) -> Iterator[int]:
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            assert node is self._root or node.children or node.slot is not None, "a leaf without a snapshot"
            nodes.extend(node.children.values())
            yield from node.pages

    def kept_slots(self) -> Iterator[int]:
        return (node.slot for node in self._snapshots if node.slot is not None)
