"""Whose chunked delta rule runs the prefill: chosen by GPU, package, shapes and measurement, and the reason in words.

choose_prefill(wish, ...)    what to run, before anything is built; an explicit wish is honoured or refused
prove_prefill(choice, ...)   call it on real tensors; if it was our own choice and fails, ours takes its place
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Literal, Self

import torch
from triton.runtime import driver

from hotstart import log
from hotstart.errors import ConfigError, WarmupError
from hotstart.kernels import gdn_external
from hotstart.kernels.launch import LaunchSpace
from hotstart.kernels.ops import GdnDims, Prefill
from hotstart.kernels.target import Target
from hotstart.kernels.tile_tables import Table

__all__ = ["PrefillChoice", "RuleFamily", "choose_prefill", "installed_packages", "prove_prefill"]

PACKAGES: dict[Prefill, str] = {"fla": "fla-core", "flashinfer": "flashinfer-python"}
FLASHINFER_ARCHS = (90, 100, 103, 120)
WORTH_IT = 1.02  # below this, a measured advantage is noise


@dataclass(frozen=True, slots=True)
class RuleFamily:
    """By which measurements of a library against ours are found in a table."""

    backend: str
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    dtype: str

    @classmethod
    def of(cls, dims: GdnDims, dtype: torch.dtype, backend: str = "") -> Self:
        name = str(dtype).removeprefix("torch.")
        return cls(backend, dims.num_key_heads, dims.num_value_heads, dims.key_dim, dims.value_dim, name)


@dataclass(frozen=True, slots=True)
class PrefillChoice:
    name: Prefill
    reason: str
    explicit: bool = False  # the user's own wish: nothing takes its place

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def installed_packages() -> dict[Prefill, str]:
    """Versions of the libraries that are here; nothing is imported."""
    found: dict[Prefill, str] = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def choose_prefill(
    wish: Literal["auto"] | Prefill,
    target: Target | None,
    dims: GdnDims,
    dtype: torch.dtype,
    installed: Mapping[Prefill, str],
    measured: Table,
) -> PrefillChoice:
    """`target` is None where the layers run PyTorch's ops.  Raises ConfigError for a wish that cannot be met here."""
    if wish != "auto":
        if why := _impossible(wish, target, dims, dtype, installed):
            raise ConfigError(f"--gdn-prefill-backend {wish} {why}")
        return PrefillChoice(wish, "as asked for", explicit=True)
    if target is None:
        return PrefillChoice("torch", "the layers run PyTorch's ops")
    best, gain, notes = None, WORTH_IT, []
    for name in PACKAGES:
        entry = measured.find("gdn_prefill_backend", asdict(RuleFamily.of(dims, dtype, name)))
        if entry is None:
            if name in installed:
                notes.append(f"{name} was not measured against it on {target.gpu} at these shapes")
        elif entry.gain <= WORTH_IT:
            notes.append(f"{name} is not faster on {target.gpu} (measured {entry.date})")
        elif why := _impossible(name, target, dims, dtype, installed):
            notes.append(f"{name} measured {entry.gain:.2f} times as fast, but {why}")
        elif entry.gain > gain:
            best, gain = name, entry.gain
            notes.insert(0, f"{entry.gain:.2f} times as fast as ours on {target.gpu} (measured {entry.date})")
    return PrefillChoice(best or "triton", "; ".join(notes) or f"no library is faster on {target.gpu}, as far as known")


def _impossible(
    name: Prefill, target: Target | None, dims: GdnDims, dtype: torch.dtype, installed: Mapping[Prefill, str]
) -> str:
    """Why not, with the remedy; nothing if it is possible."""
    if name == "torch":
        return ""
    if target is None:
        return "needs a GPU and --kernel-backend triton; use --gdn-prefill-backend auto"
    if name in PACKAGES and name not in installed:
        return f"needs {PACKAGES[name]}, which is not installed; pip install 'hotstart[{name}]'"
    shapes = f"K={dims.key_dim}, V={dims.value_dim} in {str(dtype).removeprefix('torch.')}"
    if name == "fla" and dims.key_dim > 256:
        return f"takes K up to 256, the model has {shapes}; use --gdn-prefill-backend triton"
    if name == "flashinfer":
        if target.arch not in FLASHINFER_ARCHS:
            return f"has no kernel for sm_{target.arch} ({target.gpu}); use --gdn-prefill-backend triton"
        if (dims.key_dim, dims.value_dim) != (128, 128) or dtype not in (torch.bfloat16, torch.float16):
            return f"takes K=V=128 in bfloat16 or float16, the model has {shapes}; use --gdn-prefill-backend triton"
    return ""


def prove_prefill(choice: PrefillChoice, space: LaunchSpace) -> PrefillChoice:
    """Run it on real tensors, where a library compiles, tunes and fails.  `space` says for which backend it is.

    Raises WarmupError if it fails and the user asked for it.
    """
    if choice.name not in PACKAGES:
        return choice
    assert space.gdn_prefill == choice.name, (space.gdn_prefill, choice.name)
    try:
        gdn_external.warmup(space.on(driver.active.get_active_torch_device()))
    except Exception as cause:
        what = f"{choice.name} failed in its warm-up: {type(cause).__name__}: {cause}"
        if choice.explicit:
            raise WarmupError(
                f"--gdn-prefill-backend {what}; an explicit choice has no fallback, use auto or triton"
            ) from cause
        log.warning("prefill backend failed", backend=choice.name, cause=what, instead="triton")
        return PrefillChoice("triton", f"{what}, so our kernels take its place")
    return choice
