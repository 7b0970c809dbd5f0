"""What `hotstart tune` does, from configs alone: tiles, libraries against our prefill, and a table of both."""

import hashlib
import inspect
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import torch
import triton.testing
from triton.runtime import driver

from hotstart.config.model import ModelConfig
from hotstart.engine.check import Checker
from hotstart.engine.kernels import command_line
from hotstart.engine.runner import in_inference_mode
from hotstart.errors import ConfigError, WarmupError
from hotstart.kernels import tune
from hotstart.kernels.backends import ops_for
from hotstart.kernels.gdn_backends import RuleFamily, choose_prefill, installed_packages, prove_prefill
from hotstart.kernels.launch import LaunchSpace
from hotstart.kernels.ops import GdnDims, Prefill
from hotstart.kernels.target import current_target
from hotstart.kernels.tile_tables import Entry, Table, read_table, write_table
from hotstart.kernels.warm_up import warm_up

__all__ = ["Comparison", "compare_backends", "export", "tune_models"]

# What a library may take to compile and tune itself for one family of heads: flash-linear-attention 48 s on 16 cores.
_LIBRARY_S = 60.0
# Prompts whose mixers are timed: those of docs/PREFILL.md, which fill the GPU, or do not.
_SHAPES = ((64,), (512,), (2048,), (8192,), (32768,), (256,) * 32, (1024,) * 8, (16,) * 64)


def tune_models(configs: Sequence[ModelConfig], time_limit_s: float, on_tuning: tune.OnTuning) -> tune.TileReport:
    """Time everything anew, whatever tables say."""
    if not torch.cuda.is_available():
        raise ConfigError("hotstart tune times kernels on the GPU of this machine, and there is none")
    spaces = [Checker(config).space() for config in configs]
    return tune.resolve(*spaces, mode="force", command=command_line(), time_limit_s=time_limit_s, on_tuning=on_tuning)


@dataclass(frozen=True, slots=True)
class Comparison:
    entries: tuple[Entry, ...]
    lines: tuple[str, ...]


def compare_backends(configs: Sequence[ModelConfig], time_limit_s: float, on_tuning: tune.OnTuning) -> Comparison:
    """Installed libraries against our prefill, conv to gated norm; one that does not run here is told and left out."""
    end = time.perf_counter() + time_limit_s
    target, installed = current_target(), installed_packages()
    entries, lines = [], []
    spaces = _spaces(configs)
    for done, (family, (space, dims)) in enumerate(spaces.items()):
        ours: dict[str, float] = {}
        for name in installed:
            left = end - time.perf_counter()
            if left < _LIBRARY_S:
                lines.append(
                    f"{name} was not measured for {family}: it can take {_LIBRARY_S:.0f} s, {left:.0f} are left"
                )
                continue
            on_tuning(f"{name} against ours", done, len(spaces), left)
            try:
                choice = choose_prefill(name, target, dims, space.activation_dtypes[0], installed, Table(""))
                prove_prefill(choice, replace(space, gdn_prefill=name))
            except (ConfigError, WarmupError) as error:
                lines.append(str(error))
                continue
            ours = ours or _times(space, "triton")
            entry = Entry(
                kernel="gdn_prefill_backend",
                family=asdict(replace(family, backend=name)),
                tiles={"version": installed[name]},
                us=_times(space, name),
                default_us=ours,
                date=date.today().isoformat(),
                command=command_line(),
                versions=target.versions,
                source=_source_of("triton"),
            )
            entries.append(entry)
            lines.append(f"{name} {installed[name]}: {entry.gain:.2f} times as fast as ours for {family}")
    tune.keep(target, tuple(entries))
    return Comparison(tuple(entries), tuple(lines))


def _spaces(configs: Sequence[ModelConfig]) -> dict[RuleFamily, tuple[LaunchSpace, GdnDims]]:
    """One for each family of heads among the models."""
    spaces = [Checker(config).space() for config in configs]
    return {RuleFamily.of(s.gdn, s.activation_dtypes[0]): (s, s.gdn) for s in spaces if s.gdn is not None}


@in_inference_mode
def _times(space: LaunchSpace, name: Prefill) -> dict[str, float]:
    """Microseconds by shape."""
    space = space.on(driver.active.get_active_torch_device())
    if name == "triton":
        warm_up(space)
    dims, dtype = space.gdn, space.activation_dtypes[0]
    assert dims is not None
    op, times = ops_for("triton", name).gdn_prefill, {}
    for lengths in _SHAPES:
        step = space.prompts(space.device, lengths)
        on = space.sized(sum(lengths), len(lengths))
        packed, weights, conv, state = on.gdn_inputs(dims, dtype)
        packed.normal_()
        out = on.tokens(dims.num_value_heads * dims.value_dim, dtype)

        def call(arguments: tuple[object, ...] = (packed, weights, conv, state, step.prefill, dims, out)) -> None:
            op(*arguments)

        times[tune.shape_name(lengths)] = round(1000 * triton.testing.do_bench(call, return_mode="median"), 2)
    return times


def _source_of(name: Prefill) -> str:
    module = sys.modules[ops_for("triton", name).gdn_prefill.__module__]
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:12]


def export(gpu: str, entries: tuple[Entry, ...], path: Path) -> int:
    """Add what was measured to the table at `path`; the answer is how many entries it has."""
    table = read_table(path) if path.exists() else Table(gpu)
    if table.gpu != gpu:
        raise ConfigError(f"{path} is a table for {table.gpu}, this is a {gpu}; name another file")
    table = table.merged(entries)
    if not table.entries:
        raise ConfigError("nothing was measured, so there is nothing to export; see above for the reasons")
    write_table(path, table)
    return len(table.entries)
