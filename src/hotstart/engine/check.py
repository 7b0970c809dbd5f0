"""check(): prove for a GPU that is not here that nothing will be compiled after the warm-up.

The model is built on meta, the same warm-up as at start-up compiles for that GPU, and random traffic goes through the
scheduler, the step inputs, the model's own layers and the sampling on meta tensors, where a launch asks for its binary
and does nothing.  There is no list of kernels here: what the model launches is what is checked.
"""

from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hotstart.cache.tensors import CacheTensors
from hotstart.config.model import ModelConfig
from hotstart.engine.device import CpuDevice
from hotstart.engine.inputs import InputBuilder
from hotstart.engine.limits import SchedulerLimits, StepLimits
from hotstart.engine.sizes import GpuSizes
from hotstart.engine.space import launch_space, moved
from hotstart.engine.traffic import random_plans
from hotstart.kernels import dry, tune
from hotstart.kernels.backends import Backend, ops_for
from hotstart.kernels.launch import LaunchKey, LaunchSpace, Recording, WarmupReport, recording, warm_up
from hotstart.kernels.watch import LateEvent, Watch
from hotstart.models import build_model, resolve_dtype, resolve_state_dtype

__all__ = ["CheckReport", "Checker", "check"]

_META = torch.device("meta")


class StubDevice(GpuSizes, CpuDevice):
    """The sizes that a GPU serves with, on a machine without one."""

    kind = "stub"
    backend: Backend = "triton"


@dataclass(frozen=True, slots=True)
class CheckReport:
    model: str
    gpu: dry.Gpu
    warmup: WarmupReport
    num_steps: int
    num_launches: int
    late: tuple[LateEvent, ...]
    unreached: tuple[LaunchKey, ...]  # warmed, and never asked for by the traffic

    @property
    def passed(self) -> bool:
        return not self.late

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "gpu": asdict(self.gpu),
            "passed": self.passed,
            "steps": self.num_steps,
            "launches": self.num_launches,
            "late": [asdict(event) for event in self.late],
            "unreached": [str(key) for key in self.unreached],
            "binaries": [
                {"key": str(b.key), "compile_s": b.compile_s, "shared_bytes": b.shared_bytes}
                for b in self.warmup.binaries
            ],
        }

    def explain(self) -> str:
        """What was done, and then what that proves and what it does not."""
        limit = self.gpu.shared_bytes
        lines = [
            f"{self.model} on {self.gpu.name} (sm_{self.gpu.arch}, {limit // 1024} KiB of shared memory a program)",
            "",
            f"{'kernel':<28}{'binaries':>9}{'shared KiB':>12}{'compile s':>11}",
        ]
        for kernel in dict.fromkeys(binary.key.kernel for binary in self.warmup.binaries):
            mine = [binary for binary in self.warmup.binaries if binary.key.kernel == kernel]
            shared = max(binary.shared_bytes for binary in mine) / 1024
            seconds = sum(binary.compile_s for binary in mine)
            lines.append(f"{kernel.strip('_'):<28}{len(mine):>9}{shared:>12.1f}{seconds:>11.2f}")
        lines += [
            f"{'all':<28}{len(self.warmup.binaries):>9}{'':>12}{self.warmup.compile_s:>11.2f} (wall time)",
            "",
            f"{self.num_steps} random steps, {self.num_launches} launches: {len(self.late)} late",
            *(f"  {event}" for event in self.late),
            *(f"  warmed, never reached: {key}" for key in self.unreached),
            "",
            "proved      every launch of these steps found its binary; each binary fits the GPU's shared memory",
            "predicted   no later step compiles: a key holds no count of tokens or sequences, no slot and no page",
            "not seen    results, times and bytes on the device, module loads, kernels of other libraries: cuBLAS's "
            "products, PyTorch's embedding",
        ]
        return "\n".join(lines)


class Checker:
    """The model and the traffic of a check; `warm_up` and `run` need an active driver, real or stub."""

    def __init__(self, config: ModelConfig, dtype: str = "auto", state_dtype: str = "auto") -> None:
        self.config = _one_layer_of_each_kind(config)
        self.ops = ops_for("triton")
        self.device = StubDevice()
        self.dtypes = resolve_dtype(config, dtype), resolve_state_dtype(config, state_dtype)
        self.limits = StepLimits(
            max_num_seqs=24,
            max_num_batched_tokens=2048,  # enough for both cuts of the experts' products
            max_model_len=4096,
            page_size=16,
            chunk_length=self.device.chunk_length,
            slab_rows=self.device.slab_rows,
            num_slots=24,
            num_end_ids=1,
            vocab_size=config.vocab_size,
        )

    def space(self) -> LaunchSpace:
        return launch_space(self.config, *self.dtypes, self.limits, self.device)

    def warm_up(self) -> WarmupReport:
        """With the tiles that this GPU would get without timing anything: of a table, or the default."""
        space = self.space()
        tune.resolve(space, mode="off")
        return warm_up(space)

    def run(self, num_steps: int, watch: Watch, seed: int = 0) -> Recording:
        """Random steps through scheduler, inputs, layers and sampling; the recording says which keys were asked for."""
        at = self.limits
        model = build_model(self.config, self.ops, *self.dtypes, num_positions=at.max_model_len)
        meta = partial(torch.empty, device=_META)
        cache = CacheTensors(
            model.layout(at.page_size), 512, at.num_slots, lambda shape, dtype: meta(shape, dtype=dtype)
        )
        inputs = InputBuilder(at, self.device)
        history = meta(at.num_slots, at.max_model_len, dtype=torch.int32)
        limits = SchedulerLimits(
            max_num_seqs=at.max_num_seqs,
            max_num_batched_tokens=at.max_num_batched_tokens,
            max_model_len=at.max_model_len,
            num_pages=512,
            num_slots=at.num_slots,
            page_size=at.page_size,
            chunk_length=at.chunk_length,
        )
        with recording() as record, torch.inference_mode():
            for plan in random_plans(limits, num_steps, seed):
                built = inputs.build(plan)
                _assert_aligned(built.inputs)
                hidden = model(moved(built.inputs, _META), cache)
                if built.samples.records is not None:
                    token_ids = moved(built.inputs.token_ids, _META)
                    model.ops.record(history, token_ids, moved(built.samples.records, _META))
                for slab in built.samples.slabs:
                    _assert_aligned(slab)
                    logits = model.logits(hidden[: len(slab.temperature)])
                    model.ops.sample(logits, moved(slab, _META), history)
                watch.check()
        return record


def check(config: ModelConfig, name: str, gpu: str, *, num_steps: int = 300, seed: int = 0) -> CheckReport:
    """Raises ConfigError for an unknown GPU, WarmupError if a kernel does not compile for it or does not fit."""
    checker = Checker(config)
    with dry.gpu(gpu) as stand_in, Watch() as watch:
        report = checker.warm_up()
        watch.seal()
        record = checker.run(num_steps, watch, seed)
    return CheckReport(
        model=name,
        gpu=stand_in,
        warmup=report,
        num_steps=num_steps,
        num_launches=sum(record.counts.values()),
        late=tuple(watch.events),
        unreached=tuple(sorted(report.keys - record.counts.keys(), key=str)),
    )


def _one_layer_of_each_kind(config: ModelConfig) -> ModelConfig:
    """Layers of a kind launch the same binaries; a model of sixty would only take longer."""
    kinds = dict(
        zip(zip(config.layer_types, config.moe_layers, strict=True), range(config.num_hidden_layers), strict=False)
    )
    layers = sorted(kinds.values())
    return replace(
        config,
        num_hidden_layers=len(layers),
        layer_types=tuple(config.layer_types[i] for i in layers),
        moe_layers=tuple(config.moe_layers[i] for i in layers),
    )


def _assert_aligned(step: object) -> None:
    """On meta tensors a launch cannot see this; a view that is off its 16 bytes would be a binary of its own."""
    for item in fields(step):  # type: ignore[arg-type]  # a step and its parts are dataclasses
        value = getattr(step, item.name)
        if isinstance(value, Tensor):
            assert value.data_ptr() % 16 == 0, f"{item.name} of the step is at {value.data_ptr():#x}"
        elif hasattr(value, "__dataclass_fields__"):
            _assert_aligned(value)
