"""Series: the launches of one op call, made once a step and repeated by all layers of it.

    series = Series("x y", [Call(launch, "x sums", grid, scalars), ...], {"sums": Own(torch.float32, 1024)})
    series(x, y)

What a step's shape decides (grids, scalars, what memory the op takes) is said when the series is made.  A call takes
that memory, in one piece, looks at its tensors, all at once, and launches.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hotstart.kernels.direct import Fire
from hotstart.kernels.launch import BoundLaunch, addresses_of, is_profiled, is_recorded
from hotstart.kernels.target import active_driver

__all__ = ["Call", "Own", "Part", "Series"]

_PIECE = 512  # bytes: where each of the op's own tensors begins, as if it had been taken alone


class Call(NamedTuple):
    launch: BoundLaunch
    pointers: str  # names of its tensors
    grid: tuple[int, ...]
    scalars: tuple[Any, ...]


class Own(NamedTuple):
    """A tensor that the op has for itself, of undefined content."""

    dtype: torch.dtype
    elements: int


Part = tuple[list[Call], dict[str, Own]]  # of a series: launches, and what they need or leave


class _Ready(NamedTuple):
    """A call whose binary is on the device."""

    fire: Fire
    grid: tuple[int, int, int]
    takes_scratch: bool
    pick: Any  # addresses of the pointers, from those of all tensors
    rest: tuple[Any, ...]


_dtype = attrgetter("dtype")


class Series:
    """Calls in their order, on tensors of these names.  Beside its own the op holds `scratch_bytes`, which one kernel
    after the other may need for itself.
    """

    __slots__ = ("_bytes", "_calls", "_offsets", "_own", "_pointers", "_ready", "_scratch_at", "_scratch_bytes")

    def __init__(self, tensors: str, calls: Sequence[Call], own: Mapping[str, Own], scratch_bytes: int = 0) -> None:
        names = [*tensors.split(), *own]
        self._calls = tuple(calls)
        self._pointers = tuple(tuple(map(names.index, call.pointers.split())) for call in calls)
        self._own = tuple(own.values())
        ends = [0, *accumulate(-(-o.elements * o.dtype.itemsize // _PIECE) * _PIECE for o in self._own)]
        self._offsets, self._scratch_at = tuple(ends[:-1]), ends[-1]
        self._scratch_bytes, self._bytes = scratch_bytes, ends[-1] + scratch_bytes
        self._ready: dict[tuple[object, ...], tuple[_Ready, ...]] = {}

    def __call__(self, *tensors: Tensor) -> None:
        """On tensors that are dense and aligned; held, with the op's own, until all is launched."""
        addresses = addresses_of(tensors)
        device = tensors[0].device
        memory = torch.empty(self._bytes, dtype=torch.uint8, device=device)
        if addresses is None or not self._calls[0].launch.is_loaded or is_recorded() or is_profiled():
            self._one_by_one(tensors, memory)
            return
        active = active_driver()
        index = active.get_current_device()
        key = index, device, *map(_dtype, tensors)
        ready = self._ready.get(key) or self._prepare(key)
        if ready is None:
            self._one_by_one(tensors, memory)
            return
        base, stream = memory.data_ptr(), active.get_current_stream(index)
        addresses += tuple([base + offset for offset in self._offsets])
        scratch = base + self._scratch_at
        for fire, (x, y, z), takes_scratch, pick, rest in ready:
            fire(x, y, z, stream, scratch if takes_scratch else None, pick(addresses) + rest)

    def _one_by_one(self, tensors: tuple[Tensor, ...], memory: Tensor) -> None:
        """Each launch for itself: the first ones, which may compile, and all that somebody watches."""
        own = [
            memory[at : at + o.elements * o.dtype.itemsize].view(o.dtype)
            for at, o in zip(self._offsets, self._own, strict=True)
        ]
        every = (*tensors, *own)
        for call, pointers in zip(self._calls, self._pointers, strict=True):
            call.launch(call.grid, *(every[i] for i in pointers), *call.scalars)

    def _prepare(self, key: tuple[Any, ...]) -> tuple[_Ready, ...] | None:
        index, device, *dtypes = key
        dtypes += [o.dtype for o in self._own]
        found = []
        for (launch, _, grid, scalars), pointers in zip(self._calls, self._pointers, strict=True):
            loaded = launch.loaded(index, (device, *(dtypes[i] for i in pointers)))
            if loaded is None:
                return None
            x, y, z = (*grid, 1, 1)[:3]
            need = x * y * z * loaded.scratch_bytes
            assert need <= self._scratch_bytes, f"a launch takes {need} bytes of scratch, not {self._scratch_bytes}"
            rest = (*scalars, *loaded.constexprs)
            found.append(_Ready(loaded.fire, (x, y, z), need > 0, itemgetter(*pointers), rest))
        self._ready[key] = tuple(found)
        return self._ready[key]
