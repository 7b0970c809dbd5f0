"""Pool: who holds which page or which slot, as integers and reference counts.

Every id is in one of three states: free; used, when sequences refer to it; cached, when none does but the prefix
index keeps it for its content.  Ids are handed out in no order that anyone may rely on.
"""

from collections.abc import Iterable

__all__ = ["Pool"]


class Pool:
    def __init__(self, kind: str, total: int) -> None:
        self.kind = kind  # "page" or "slot", for messages
        self.total = total
        self.num_cached = 0
        self._free = list(range(total - 1, -1, -1))
        self._refs = [0] * total
        self._kept = bytearray(total)

    def __repr__(self) -> str:
        return f"{self.total} {self.kind}s: {self.num_free} free, {self.num_used} used, {self.num_cached} cached"

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Free, or free once what is cached is evicted."""
        return len(self._free) + self.num_cached

    @property
    def num_used(self) -> int:
        return self.total - len(self._free) - self.num_cached

    def take(self, count: int) -> tuple[int, ...]:
        """Free ids, each with one reference."""
        assert count <= len(self._free), f"{count} {self.kind}s taken from {self}"
        ids = tuple(self._free.pop() for _ in range(count))
        for i in ids:
            self._refs[i] = 1
        return ids

    def take_below(self, limit: int) -> int | None:
        """The lowest free id, with one reference, if it is below the limit."""
        lowest = min(self._free, default=limit)
        if lowest >= limit:
            return None
        self._free.remove(lowest)
        self._refs[lowest] = 1
        return lowest

    def share(self, ids: Iterable[int]) -> None:
        """One more reference to each id, all of which are used or cached."""
        for i in ids:
            assert self._refs[i] or self._kept[i], f"{self.kind} {i} is shared but free"
            self.num_cached -= not self._refs[i]
            self._refs[i] += 1

    def release(self, ids: Iterable[int]) -> None:
        """One reference less to each id; the last one gone, it is cached if kept, else free."""
        for i in ids:
            assert self._refs[i], f"{self.kind} {i} is released but nobody refers to it"
            self._refs[i] -= 1
            if self._refs[i]:
                continue
            if self._kept[i]:
                self.num_cached += 1
            else:
                self._free.append(i)

    def keep(self, ids: Iterable[int]) -> None:
        """Used ids whose content shall outlive its sequences."""
        for i in ids:
            assert self._refs[i] and not self._kept[i], f"{self.kind} {i} is kept but free or kept already"
            self._kept[i] = True

    def drop(self, ids: Iterable[int]) -> None:
        """Kept ids whose content is no longer wanted: they are free as soon as nobody refers to them."""
        for i in ids:
            assert self._kept[i], f"{self.kind} {i} is dropped but not kept"
            self._kept[i] = False
            if not self._refs[i]:
                self.num_cached -= 1
                self._free.append(i)

    def check(self, holders: Iterable[int], kept: Iterable[int]) -> None:
        """Compare with what the caller knows: one id for each reference, and the ids that are kept."""
        refs = [0] * self.total
        for i in holders:
            refs[i] += 1
        flags = bytearray(self.total)
        for i in kept:
            flags[i] = True
        assert refs == self._refs, f"{self.kind} references differ from their holders: {self}"
        assert flags == self._kept, f"kept {self.kind}s differ from the index: {self}"
        free = {i for i in range(self.total) if not refs[i] and not flags[i]}
        assert len(self._free) == len(free) and set(self._free) == free, f"{self.kind} leak: {self}"
        assert self.num_cached == sum(kept and not n for n, kept in zip(refs, flags, strict=True)), f"{self}"
