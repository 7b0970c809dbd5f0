"""A launch without Triton's own Python: what its launcher calls in the end, with what does not change kept.

Triton's launcher defines a function and looks at two allocators each time, a third of what a launch takes the host.
Who knows its version calls the compiled function under it; all others go through Triton.  Both must hand on the same
arguments: a test compares them for the installed version.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

__all__ = ["Fire", "fire_of", "take_scratch"]

# x, y, z, stream, the address of scratch memory or None, the kernel's arguments
Fire = Callable[[int, int, int, int, int | None, tuple[Any, ...]], None]


def take_scratch(num_bytes: int, alignment: int, stream: int | None) -> Tensor:
    """Triton asks for it at each launch of a kernel that makes descriptors of tiles for the copy engine."""
    return torch.empty(num_bytes, dtype=torch.uint8, device="cuda")


def _by_triton(compiled: Any) -> Fire:
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    needs_scratch = compiled.metadata.global_scratch_size > 0

    def fire(x: int, y: int, z: int, stream: int, scratch: int | None, args: tuple[Any, ...]) -> None:
        if needs_scratch:
            triton.set_allocator(take_scratch)
        run(x, y, z, stream, function, metadata, None, None, None, *args)

    return fire


def _compiled_for_each(compiled: Any) -> Fire:
    """Triton 3.6: a function for each signature, which takes the kernel's arguments one by one."""
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    launch, cooperative, pdl = run.launch, run.launch_cooperative_grid, run.launch_pdl

    def fire(x: int, y: int, z: int, stream: int, scratch: int | None, args: tuple[Any, ...]) -> None:
        launch(x, y, z, stream, function, cooperative, pdl, scratch, None, metadata, None, None, None, *args)

    return fire


def _one_for_all(compiled: Any) -> Fire:
    """Triton 3.7 to 3.9: one function, which is told the signature."""
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    launch, cooperative, pdl = run.launch, run.launch_cooperative_grid, run.launch_pdl
    annotations, signature = run.arg_annotations, run.kernel_signature

    def fire(x: int, y: int, z: int, stream: int, scratch: int | None, args: tuple[Any, ...]) -> None:
        launch(
            x, y, z, stream, function, cooperative, pdl, metadata, None, None, None, scratch, None, annotations,
            signature, args,
        )  # fmt: skip

    return fire


_FORMS = {"3.6": _compiled_for_each, "3.7": _one_for_all, "3.8": _one_for_all, "3.9": _one_for_all}


def fire_of(compiled: Any) -> tuple[Fire, int]:
    """How to launch this binary, and the bytes of scratch memory that the caller brings for each program.

    That is 0 where Triton's own launcher takes what is needed.
    """
    run = compiled.run
    form = _FORMS.get(".".join(triton.__version__.split(".")[:2]))
    if form is None or not _is_plain(run):
        return _by_triton(compiled), 0
    return form(compiled), int(run.global_scratch_size) * int(run.num_ctas)


def _is_plain(run: Any) -> bool:
    """Whether it is Triton's launcher for NVIDIA, and nothing looks into the kernel."""
    launcher = type(run)
    known = (launcher.__module__, launcher.__name__) == ("triton.backends.nvidia.driver", "CudaLauncher")
    return known and run.profile_scratch_size == 0 and not getattr(run, "gsan_enabled", False)
