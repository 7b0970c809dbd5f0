"""Sizes of steps by device, and how many bytes may be taken: what is known of a device before there is one."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from hotstart.config.engine import EngineConfig
from hotstart.errors import ConfigError

__all__ = ["Budget", "GpuSizes", "Sizes", "gpu_budget", "padded_rows", "prompt_rungs", "rungs"]

RESERVE_BYTES = 256 << 20
MAX_PROMPT_GRAPH = 1024  # tokens; in a longer prompt the device is busy for longer than the host takes to launch it
DISPLAY_RESERVE_BYTES = 1 << 30  # windows come and go


class Budget(NamedTuple):
    """Bytes that the engine may take of its device."""

    num_bytes: int
    source: str  # where the number comes from
    flag: str  # what raises it, if anything
    reserve_bytes: int | None = None  # None: a share of the whole
    share: float | None = None  # where the flag is a share, what it is
    card_bytes: int | None = None  # more than that there is not, whatever the flag


class Sizes(Protocol):
    chunk_length: int  # of the delta rule
    slab_rows: int  # rows of logits that exist at once
    default_num_seqs: int
    default_num_batched_tokens: int
    default_model_len: int
    packs_slots: bool  # whether states that lie side by side are worked on faster
    fair_tokens: int  # of a step, that a default keeps as long as sequences can give way

    def token_rungs(self, limit: int) -> tuple[int, ...]: ...
    def decode_rungs(self, limit: int) -> tuple[int, ...]:
        """Sizes that a step of answers alone is padded to, so that it can be captured; () where nothing is."""

    def row_rungs(self, limit: int) -> tuple[int, ...]: ...


def rungs(limit: int, fine: tuple[int, ...], step: int) -> tuple[int, ...]:
    """Ascending sizes up to `limit`, which is always the last: some fine ones, then multiples of `step`."""
    start = (fine[-1] // step + 1) * step
    return (*(size for size in (*fine, *range(start, limit, step)) if size < limit), limit)


def padded_rows(count: int, slab_rows: int, row_rungs: Sequence[int]) -> int:
    """Rows of logits: whole slabs, and a row rung for what is left over."""
    slabs, rest = divmod(count, slab_rows)
    return slabs * slab_rows + (row_rungs[bisect_left(row_rungs, rest)] if rest else 0)


def prompt_rungs(token_rungs: Sequence[int], max_model_len: int) -> tuple[int, ...]:
    """Sizes of one prompt alone, whose steps can be captured."""
    return tuple(rung for rung in token_rungs if rung <= min(MAX_PROMPT_GRAPH, max_model_len))


class GpuSizes:
    """The sizes that a GPU serves with, real or stub."""

    chunk_length = 64
    slab_rows = 128
    default_num_seqs = 256
    default_num_batched_tokens = 8192
    default_model_len = 32768
    packs_slots = False
    fair_tokens = 2048
    capture_sizes: tuple[int, ...] = (1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32))

    def token_rungs(self, limit: int) -> tuple[int, ...]:
        return rungs(limit, tuple(range(64, 1025, 64)), 256)

    def decode_rungs(self, limit: int) -> tuple[int, ...]:
        return rungs(limit, self.capture_sizes, 64)

    def row_rungs(self, limit: int) -> tuple[int, ...]:
        """Those of the decodes, whatever the user captures: so each has run once a step of so many answers has."""
        return rungs(limit, GpuSizes.capture_sizes, 64)


def gpu_budget(config: EngineConfig, card_bytes: int, name: str, *, has_display: bool) -> Budget:
    """What the driver offers, less what the user wants left alone.  Raises ConfigError for a card larger than it is."""
    total, source = card_bytes, name
    if config.device_memory_bytes is not None:
        total, source = config.device_memory_bytes, "--device-memory-bytes"
    if total > card_bytes:
        raise ConfigError(
            f"--device-memory-bytes is {total / 2**30:.2f} GiB, {name} has {card_bytes / 2**30:.2f} GiB; lower it"
        )
    if config.gpu_memory_utilization is not None:
        total = int(total * config.gpu_memory_utilization)
        source = f"--gpu-memory-utilization {config.gpu_memory_utilization} of {source}"
    reserve = config.reserve_bytes
    if reserve is None:
        reserve = DISPLAY_RESERVE_BYTES if has_display else RESERVE_BYTES
    flag = "--device-memory-bytes" if config.device_memory_bytes is not None else ""
    if config.gpu_memory_utilization is not None:
        flag = "--gpu-memory-utilization"
    return Budget(total, source, flag, reserve, config.gpu_memory_utilization, card_bytes)
