"""Tunable: the tiles of a kernel, looked up by a launch and chosen at start-up (tune.py).

    _scan_tiles = Tunable("gdn_scan", (_scan,), families=..., candidates=..., trial=...)
    cut = _scan_tiles(family)           # in the op: a lookup, and nothing else

Tiles are a function of the model and the GPU, never of the step.  So two steps cannot differ by them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor
from triton.runtime import driver

from hotstart.kernels.launch import Launcher
from hotstart.kernels.space import LaunchSpace
from hotstart.kernels.target import Target, current_target

__all__ = ["TUNABLES", "Trial", "Tunable", "choices_made"]

# Prompts whose mixers are timed: one long, some of middle length, many short; never one tiny shape.
SHAPES: tuple[tuple[int, ...], ...] = ((4096,), (512,) * 8, (64,) * 32)

TUNABLES: list["Tunable[Any, Any]"] = []
_choices = 0


def choices_made() -> int:
    """Grows with every choice: what an op has computed from its tiles holds as long as this number does."""
    return _choices


Family = TypeVar("Family")  # a frozen dataclass of plain values: the shapes and types that decide which tiles are best
Tiles = TypeVar("Tiles")  # likewise: what there is to choose


class Trial(NamedTuple):
    """One call of the op on scratch memory, and that memory."""

    call: Callable[[], object]
    scratch: tuple[Tensor, ...]


class Tunable(Generic[Family, Tiles]):
    """Tiles of `launchers`, which one call of the op launches.

    families(space)                 those that a model asks for
    candidates(target, family)      in the order that decides ties; the first is the safe default for this GPU
    trial(space, family, lengths)   the real op on prompts of these lengths and on memory of its own, as space.prompts
                                    has them: from zero, so that it may be called any number of times
    shapes                          the lengths that are timed; the best tiles are the best over all of them

    A kernel that works in place has fixed tiles: registering it is a TypeError.
    """

    def __init__(
        self,
        name: str,
        launchers: tuple[Launcher, ...],
        *,
        families: Callable[[LaunchSpace], tuple[Family, ...]],
        candidates: Callable[[Target, Family], tuple[Tiles, ...]],
        trial: Callable[[LaunchSpace, Family, tuple[int, ...]], Trial],
        shapes: tuple[tuple[int, ...], ...] = SHAPES,
    ) -> None:
        for launcher in launchers:
            if not isinstance(launcher, Launcher):
                raise TypeError(f"{name}: {launcher} is no Launcher; decode and in-place ops have fixed tiles")
            if launcher.in_place:
                raise TypeError(
                    f"{name}: {launcher.kernel.name} overwrites what it reads, so it cannot be called twice on the "
                    "same data; its tiles are fixed"
                )
        assert shapes and all(sum(lengths) > 1 for lengths in shapes), f"{name}: nothing to time in {shapes}"
        self.name = name
        self.launchers = launchers
        self.families = families
        self.candidates = candidates
        self.trial = trial
        self.shapes = shapes
        self._chosen: dict[tuple[object, Family], Tiles] = {}
        TUNABLES.append(self)

    def __call__(self, family: Family) -> Tiles:
        tiles = self._chosen.get((driver._active, family))
        return self.use(family, self.default(family)) if tiles is None else tiles

    def default(self, family: Family) -> Tiles:
        return self.candidates(current_target(), family)[0]

    def use(self, family: Family, tiles: Tiles) -> Tiles:
        """From now on, on the active GPU."""
        global _choices
        _choices += 1
        self._chosen[driver._active, family] = tiles
        return tiles

    @contextmanager
    def using(self, family: Family, tiles: Tiles) -> Iterator[None]:
        before = self(family)
        self.use(family, tiles)
        try:
            yield
        finally:
            self.use(family, before)

    @property
    def source(self) -> str:
        """Changes with the source of the kernels, and of what they call."""
        return "-".join(launcher.kernel.jit.cache_key[:12] for launcher in self.launchers)
