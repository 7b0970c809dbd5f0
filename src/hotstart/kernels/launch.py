"""The heart: kernels whose binaries can be counted, and a warm-up that calls what serving calls.

    @kernel             every parameter is a pointer, a tl.constexpr, or an annotated scalar
    Launcher            launches it; knows the key of each launch, and the warm-up that reaches all of them
    LaunchSpace         all that can change a binary: dims, dtypes, page size; written once by start-up
    warm_up(space)      reaches every launch, and compiles, loads and launches each binary (see warm_up.py)
    seal(), Watch       from then on a compile, a tuning run, a load or growth of memory is an event (see watch.py)

A key is made of dtypes, constexprs and options alone: scalars are never specialised, tensors are dense and aligned.
So no token count, no view and no slot number can make a binary that the warm-up did not see.

A kernel with the constexpr OVERLAP may begin before the one that it depends on has ended, where the GPU can do that.
It is told so here, and not by its op: if OVERLAP, it waits (gdc_wait) before it reads what others wrote.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import attrgetter, or_
from typing import Any, NoReturn, overload

import torch
import triton
import triton.language as tl
from triton import knobs

from hotstart.kernels.direct import Fire, fire_of, take_scratch
from hotstart.kernels.key import LaunchKey, options_in_words, pointer_type, type_name
from hotstart.kernels.space import LaunchSpace
from hotstart.kernels.target import active_driver, current_target
from hotstart.kernels.watch import LateEvent, MemoryWatch, Watch

__all__ = [
    "LAUNCHERS",
    "BoundLaunch",
    "Kernel",
    "LateEvent",
    "LaunchKey",
    "LaunchSpace",
    "Launcher",
    "Loaded",
    "MemoryWatch",
    "Recording",
    "Watch",
    "addresses_of",
    "is_profiled",
    "is_recorded",
    "kernel",
    "launches_overlap",
    "recording",
    "seal",
]

ALIGNMENT = 16  # bytes; Triton compiles a second binary for a pointer that is off it
# Triton changes its default in 3.10; the same source must give the same numbers before and after.
_FP_FUSION = True


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A Triton function whose parameters obey the rules: pointers first, then scalars, constexprs last."""

    name: str
    jit: Any
    parameters: tuple[str, ...]  # pointers and scalars, in order
    scalar_types: tuple[str | None, ...]  # for each of them: None for a pointer
    num_pointers: int
    constexprs: tuple[str, ...]


@overload
def kernel(function: Callable[..., None]) -> Kernel: ...
@overload
def kernel(*, jit: Callable[..., Any]) -> Callable[[Callable[..., None]], Kernel]: ...
def kernel(
    function: Callable[..., None] | None = None, *, jit: Callable[..., Any] = triton.jit
) -> Kernel | Callable[[Callable[..., None]], Kernel]:
    """Compile `function` with Triton, after checking that no argument's value can choose a binary by accident.

    A pointer is named `*_ptr`; a scalar is annotated (`eps: tl.float32`) and is put into `do_not_specialize`, because
    either alone still makes binaries for the values 1 and multiples of 16.  Pointers come first, constexprs last.
    Anything else is a TypeError.  `@kernel(jit=gluon.jit)` is for a function in Gluon.
    """
    if function is None:
        return partial(_kernel_by, jit)
    return _kernel_by(jit, function)


def _kernel_by(jit: Callable[..., Any], function: Callable[..., None]) -> Kernel:
    name = function.__name__
    types: dict[str, str | None] = {}
    constexprs: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        annotation = parameter.annotation
        if parameter.default is not parameter.empty or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise TypeError(f"{name}: {parameter} must be a plain parameter without a default")
        if annotation is tl.constexpr:
            constexprs.append(parameter.name)
            continue
        if constexprs:
            raise TypeError(f"{name}: {parameter.name} stands after a constexpr; constexprs come last")
        if isinstance(annotation, tl.dtype):
            types[parameter.name] = type_name(annotation.name)
        elif annotation is parameter.empty and parameter.name.endswith("_ptr"):
            if any(types.values()):
                raise TypeError(f"{name}: {parameter.name} stands after a scalar; pointers come first")
            types[parameter.name] = None
        else:
            raise TypeError(
                f"{name}: {parameter.name} is none of: a pointer named *_ptr without annotation, a tl.constexpr, "
                "a scalar annotated with a Triton type (tl.int32, tl.float32)"
            )
    scalars = [n for n, scalar_type in types.items() if scalar_type is not None]
    compiled = jit(function, do_not_specialize=scalars)
    return Kernel(name, compiled, tuple(types), tuple(types.values()), len(types) - len(scalars), tuple(constexprs))


@dataclass(slots=True)
class Loaded:
    """What a launch needs once its binary is on the device."""

    binary: object  # held, since Triton 3.9 unloads a binary that nobody holds
    fire: Fire
    scratch_bytes: int  # that a launch brings for each program
    constexprs: tuple[object, ...]

    def launch(self, grid: tuple[int, ...], stream: int, args: tuple[Any, ...]) -> None:
        x, y, z = (*grid, 1, 1)[:3]
        scratch = None
        if self.scratch_bytes:
            memory = take_scratch(x * y * z * self.scratch_bytes, 128, stream)
            scratch = memory.data_ptr()
        self.fire(x, y, z, stream, scratch, args)


@dataclass(slots=True, eq=False)
class Recording:
    """The launches seen while `recording()` is active, meta ones too: how often each key was asked for."""

    counts: dict[LaunchKey, int] = field(default_factory=dict)
    binaries: dict[LaunchKey, Any] = field(default_factory=dict)
    last: LaunchKey | None = None

    def note(self, key: LaunchKey) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1
        self.last = key


LAUNCHERS: list["Launcher"] = []
_recordings: list[Recording] = []


@contextmanager
def recording() -> Iterator[Recording]:
    record = Recording()
    _recordings.append(record)
    try:
        yield record
    finally:
        _recordings.remove(record)


def launches_overlap() -> bool:
    """Whether the active GPU begins a kernel before the one that it depends on has ended: from sm_90 on."""
    return current_target().arch >= 90


class Launcher:
    """Launches one kernel, and registers the warm-up that reaches every binary it can need.

    `launch(grid, *pointers_and_scalars, **constexprs_and_options)`, arguments in the kernel's order.  Tensors are
    dense (C order) and 16-byte aligned, so strides follow from the dims that are passed as constexprs.  With meta
    tensors the binary is compiled for the active target, and nothing is launched.  A kernel that overwrites what it
    reads says so with `in_place`, and is never tuned.
    """

    __slots__ = ("_bound", "in_place", "kernel", "known", "warmup")

    def __init__(self, kernel: Kernel, *, warmup: Callable[[LaunchSpace], None], in_place: bool = False) -> None:
        if not isinstance(kernel, Kernel) or not callable(warmup):
            raise TypeError(f"Launcher needs a function decorated with @kernel and its warm-up, got {kernel}, {warmup}")
        self.kernel = kernel
        self.warmup = warmup
        self.in_place = in_place
        self.known: set[LaunchKey] = set()
        self._bound: dict[tuple[object, ...], BoundLaunch] = {}
        LAUNCHERS.append(self)

    def bind(self, **constexprs: Any) -> "BoundLaunch":
        """This launch with its constexprs and options.  What an op keeps, since names take time to compare."""
        key = tuple(constexprs.items())
        return self._bound.get(key) or self._bound.setdefault(key, BoundLaunch(self, constexprs))

    def __call__(self, grid: tuple[int, ...], *args: Any, **constexprs: Any) -> None:
        launch = self._bound.get(tuple(constexprs.items())) or self.bind(**constexprs)
        launch(grid, *args)

    def key(self, args: tuple[Any, ...], constexprs: dict[str, Any]) -> LaunchKey:
        """The key of a launch with these arguments."""
        kernel = self.kernel
        assert len(args) == len(kernel.parameters), f"{kernel.name} takes {kernel.parameters}, got {len(args)} values"
        missing = set(kernel.constexprs) - set(constexprs)
        assert not missing, f"{kernel.name}: constexprs {sorted(missing)} are missing"
        variable = [
            (name, scalar_type or pointer_type(value.dtype))
            for name, scalar_type, value in zip(kernel.parameters, kernel.scalar_types, args, strict=True)
        ]
        fixed = [(name, str(constexprs[name])) for name in kernel.constexprs]
        return LaunchKey(kernel.name, (*variable, *fixed, *options_in_words(constexprs)))


_address, _is_dense = torch.Tensor.data_ptr, torch.Tensor.is_contiguous
_device, _dtype, _is_cuda = attrgetter("device"), attrgetter("dtype"), attrgetter("is_cuda")


def addresses_of(tensors: tuple[torch.Tensor, ...]) -> tuple[int, ...] | None:
    """None unless all are dense, aligned and on one device."""
    addresses = tuple(map(_address, tensors))
    # Nobody here has two GPUs in a process; what must not meet is meta and real.
    alike = all(map(_is_cuda, tensors)) or len(set(map(_device, tensors))) == 1
    if not alike or reduce(or_, addresses) % ALIGNMENT or not all(map(_is_dense, tensors)):
        return None
    return addresses


def is_recorded() -> bool:
    return bool(_recordings)


def is_profiled() -> bool:
    """Whether a profiler waits for launches: it gets them by Triton's own path."""
    hook = knobs.runtime.launch_enter_hook
    return bool(getattr(hook, "calls", hook))


class BoundLaunch:
    """A launch that lacks its grid, pointers and scalars: `launch(grid, *pointers_and_scalars)`."""

    __slots__ = ("_given", "_launcher", "_loaded", "_num_pointers")

    def __init__(self, launcher: Launcher, constexprs: dict[str, Any]) -> None:
        self._launcher = launcher
        self._given = constexprs
        self._num_pointers = launcher.kernel.num_pointers
        self._loaded: dict[tuple[object, ...], Loaded] = {}

    @property
    def constexprs(self) -> dict[str, Any]:
        """And options: those that were given, and on the active GPU whether launches overlap."""
        if "OVERLAP" not in self._launcher.kernel.constexprs:
            return self._given
        overlap = launches_overlap()
        return {**self._given, "OVERLAP": overlap, "launch_pdl": overlap}

    @property
    def is_loaded(self) -> bool:
        """For any types."""
        return bool(self._loaded)

    def loaded(self, device: int, signature: tuple[object, ...]) -> Loaded | None:
        """For the torch device and the dtypes of `signature`, if such a launch was made before."""
        return self._loaded.get((device, *signature))

    def __call__(self, grid: tuple[int, ...], *args: Any) -> None:
        tensors = args[: self._num_pointers]
        addresses = addresses_of(tensors) or self._refuse(tensors)
        signature = tensors[0].device, *map(_dtype, tensors)
        if _recordings:
            self._note(args)
        # The path of serving: Triton's own binding and key are skipped, since ours is complete.
        if self._loaded and not is_profiled():
            active = active_driver()
            index = active.get_current_device()
            loaded = self._loaded.get((index, *signature))
            if loaded is not None:
                if 0 not in grid:
                    scalars, stream = args[self._num_pointers :], active.get_current_stream(index)
                    loaded.launch(grid, stream, (*addresses, *scalars, *loaded.constexprs))
                return
        self._first(grid, args, signature)

    def _refuse(self, tensors: tuple[torch.Tensor, ...]) -> NoReturn:
        kernel, device = self._launcher.kernel, tensors[0].device
        for parameter, tensor in zip(kernel.parameters, tensors, strict=False):
            name, address = f"{kernel.name}: {parameter}", tensor.data_ptr()
            assert tensor.device == device, f"{name} is on {tensor.device}, the first tensor on {device}"
            assert not address % ALIGNMENT, f"{name} at {address:#x} is not {ALIGNMENT}-byte aligned"
            assert tensor.is_contiguous(), f"{name} is not dense: {tuple(tensor.shape)}, {tensor.stride()}"
        raise AssertionError(f"{kernel.name} refuses {tensors}")

    def _note(self, args: tuple[Any, ...]) -> None:
        key = self._launcher.key(args, self.constexprs)
        for record in _recordings:
            record.note(key)

    def _first(self, grid: tuple[int, ...], args: tuple[Any, ...], signature: tuple[Any, ...]) -> None:
        kernel, device, constexprs = self._launcher.kernel, signature[0], self.constexprs
        if device.type == "meta":
            self._compile(args, constexprs)
            return
        if 0 in grid:
            return
        assert all(extent <= 65535 for extent in grid[1:]), f"{kernel.name}: grid {grid} is over 65535 on y or z"
        if knobs.runtime.interpret:
            kernel.jit.run(*args, grid=grid, warmup=False, **constexprs)
            return
        active = active_driver()
        expected = active.get_active_torch_device()
        assert device == expected, f"{kernel.name}: tensors are on {device}, the active device is {expected}"
        triton.set_allocator(take_scratch)
        compiled = kernel.jit.run(*args, grid=grid, warmup=False, enable_fp_fusion=_FP_FUSION, **constexprs)
        assert compiled is not None, f"{kernel.name}: a hook of another library prevented the compile"
        tail = tuple(constexprs[name] for name in kernel.constexprs)
        self._loaded[active.get_current_device(), *signature] = Loaded(compiled, *fire_of(compiled), tail)
        self._launcher.known.add(self._launcher.key(args, constexprs))

    def _compile(self, args: tuple[Any, ...], constexprs: dict[str, Any]) -> None:
        if knobs.runtime.interpret:
            return
        active_driver()
        launcher = self._launcher
        key = launcher.key(args, constexprs)
        compiled = launcher.kernel.jit.run(*args, grid=(1,), warmup=True, enable_fp_fusion=_FP_FUSION, **constexprs)
        launcher.known.add(key)
        for record in _recordings:
            record.binaries.setdefault(key, compiled)


def seal(mode: str = "warn", memory: tuple[MemoryWatch, ...] = ()) -> Watch:
    """Watch this process from now on: see `Watch`."""
    watch = Watch(mode, memory, known=lambda: {key for launcher in LAUNCHERS for key in launcher.known})
    watch.seal()
    return watch
