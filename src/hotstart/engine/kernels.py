"""The kernels of a start: which ops the layers call is settled before the model is built, the rest in the warm-up."""

import re
import shlex
import sys
from dataclasses import dataclass
from typing import Any

from hotstart.config.engine import EngineConfig
from hotstart.config.model import ModelConfig
from hotstart.engine.device import Device
from hotstart.engine.limits import StepLimits
from hotstart.engine.phases import RunningPhase
from hotstart.engine.space import launch_space
from hotstart.kernels import tune
from hotstart.kernels.backends import ops_for
from hotstart.kernels.gdn_backends import PrefillChoice, choose_prefill, installed_packages, prove_prefill
from hotstart.kernels.launch import LaunchSpace
from hotstart.kernels.ops import Ops
from hotstart.kernels.target import current_target
from hotstart.kernels.tile_tables import Table, read_cached, shipped
from hotstart.kernels.warm_up import WarmupReport, warm_up
from hotstart.layers.gated_delta_net import gdn_dims
from hotstart.models import resolve_dtype, resolve_state_dtype

__all__ = ["KernelChoice", "WarmKernels", "choose_kernels", "command_line", "warm_up_kernels"]


@dataclass(frozen=True, slots=True)
class KernelChoice:
    ops: Ops
    prefill: PrefillChoice
    space: LaunchSpace | None  # None where nothing is compiled


@dataclass(frozen=True, slots=True)
class WarmKernels:
    tiles: tune.TileReport
    binaries: WarmupReport

    def by_kernel(self) -> list[dict[str, Any]]:
        """For people to look at: how many binaries each kernel has, and what compiling them took."""
        rows: dict[str, dict[str, Any]] = {}
        for binary in self.binaries.binaries:
            name = binary.key.kernel.strip("_")
            row = rows.setdefault(name, {"name": name, "binaries": 0, "compile_s": 0.0})
            row["binaries"] += 1
            row["compile_s"] += binary.compile_s
        return sorted(rows.values(), key=lambda row: str(row["name"]))


def choose_kernels(config: EngineConfig, model_config: ModelConfig, limits: StepLimits, device: Device) -> KernelChoice:
    """Raises ConfigError for a backend that cannot be had here, WarmupError if one that was asked for fails."""
    dtype = resolve_dtype(model_config, config.dtype)
    wish, dims = config.gdn_prefill_backend, gdn_dims(model_config)
    if device.backend == "torch":
        choice = choose_prefill(wish, None, dims, dtype, {}, Table(""))
        return KernelChoice(ops_for("torch", choice.name, on_gpu=device.kind != "cpu"), choice, None)
    target = current_target()
    measured = shipped(target).merged(read_cached(target).entries)
    choice = choose_prefill(wish, target, dims, dtype, installed_packages(), measured)
    states = resolve_state_dtype(model_config, config.mamba_ssm_cache_dtype)
    space = launch_space(model_config, dtype, states, limits, device, choice.name)
    proved = choice if config.unsafe_skip_warmup else prove_prefill(choice, space)
    if proved.name != choice.name:
        space = launch_space(model_config, dtype, states, limits, device, proved.name)
    return KernelChoice(ops_for("triton", proved.name), proved, space)


def warm_up_kernels(choice: KernelChoice, config: EngineConfig, running: RunningPhase) -> WarmKernels | None:
    """Choose tiles, then compile, load and launch every binary.  None where the ops are PyTorch's."""
    if choice.space is None:
        running.detail = "torch operators only, which compile nothing"
        return None
    if config.unsafe_skip_warmup:
        running.detail = "SKIPPED"
        return None

    def on_tuning(kernel: str, done: int, total: int, seconds_left: float) -> None:
        running.progress(done, total, f"tuning {kernel}: at most {seconds_left:.0f} s more")

    tiles = tune.resolve(choice.space, mode=config.tune, command=command_line(), on_tuning=on_tuning)
    report = warm_up(choice.space)
    running.detail = f"{len(report.binaries)} binaries; {tiles.summary()}"
    return WarmKernels(tiles, report)


def command_line() -> str:
    """What to write beside a measurement; names of this machine's folders are nobody's business."""
    program, *words = (re.sub(r"[^=]*/", "", word) for word in sys.argv)
    return shlex.join(["hotstart" if program == "__main__.py" else program, *words])
