"""check(): prove for a GPU that is not here that nothing will be compiled after the warm-up.

The same warm-up as at start-up compiles for that GPU.  Then the watch is sealed, and what start-up rehearses, captures
and replays, and random traffic after it, go through the real engine - scheduler, step inputs, runner, the model's own
layers, sampler - on tensors without data, where a launch asks for its binary and does nothing (stub.py).  There is no
list of kernels here: what the model launches is what is checked.
"""

from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

from torch import Tensor
from triton.runtime import driver

from hotstart.cache.tensors import CacheTensors
from hotstart.config.engine import EngineConfig
from hotstart.config.model import ModelConfig
from hotstart.engine.device import CpuDevice
from hotstart.engine.engine import Engine
from hotstart.engine.graphs import StepGraphs
from hotstart.engine.inputs import BuiltStep, InputBuilder
from hotstart.engine.limits import StepLimits
from hotstart.engine.phases import RunningPhase, ignore_phases
from hotstart.engine.plan import StepPlan
from hotstart.engine.rungs import capture, run_rungs, try_capture
from hotstart.engine.runner import Runner
from hotstart.engine.sampler import Sampler
from hotstart.engine.scheduler import Scheduler
from hotstart.engine.sizes import GpuSizes
from hotstart.engine.sizing import Known, read_wishes, scheduler_limits
from hotstart.engine.solve import solve
from hotstart.engine.space import launch_space
from hotstart.engine.stub import AnyGuides, ReplayDevice
from hotstart.engine.traffic import random_traffic
from hotstart.kernels import dry, tune
from hotstart.kernels.backends import Backend, ops_for
from hotstart.kernels.launch import LaunchKey, LaunchSpace, Recording, recording
from hotstart.kernels.warm_up import WarmupReport, warm_up
from hotstart.kernels.watch import LateEvent, Watch
from hotstart.models import build_model, resolve_dtype, resolve_state_dtype
from hotstart.models.weights import fill_random

__all__ = ["CheckReport", "Checker", "check"]

_MORE_PAGES = 64  # than the longest sequence takes: so few that others have to give way beside it


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
            f"all sizes, captures, {self.num_steps} random steps: {self.num_launches} launches, {len(self.late)} late, "
            f"{len(self.unreached)} warmed and never reached",
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
            max_model_len=min(4096, config.max_position_embeddings),
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

    def run(self, num_steps: int, watch: Watch, seed: int = 0, *, rehearsed: bool = False) -> Recording:
        """Random steps of an engine; the recording says which keys were asked for.

        `rehearsed`: after all sizes of steps have run and been captured, as at start-up.
        """
        with recording() as record:
            random_traffic(self._engine(watch, seed, rehearsed), num_steps, seed)
        return record

    def _engine(self, watch: Watch, seed: int, rehearsed: bool) -> Engine:
        """Of the same parts as a real one; only memory is no question here."""
        at, device = self.limits, ReplayDevice(driver.active.stand_in, seed)
        num_pages = at.max_pages + _MORE_PAGES
        model = build_model(self.config, self.ops, *self.dtypes, num_positions=at.max_model_len)
        fill_random(model, 0, partial(device.arena.allocate, "weights"))
        layout = model.layout(at.page_size)
        guides = AnyGuides()
        inputs = _AlignedInputs(at, device, guides.fill)
        sampler = Sampler(model.logits, model.ops, at, device)

        def runner(num_pages: int, num_slots: int, graphs: StepGraphs | None = None) -> Runner:
            cache = CacheTensors(layout, num_pages, num_slots, partial(device.arena.allocate, "cache"))
            return Runner(model, 0, inputs, sampler, device.step_scope, cache, graphs)

        graphs = None
        if rehearsed:
            recorder, running = device.recorder(), RunningPhase("rehearse", ignore_phases)
            sizes = inputs.decode_rungs[-1], model.config.hidden_size, model.dtype
            graphs = StepGraphs(inputs.graph_keys(), *sizes, device.arena, recorder)
            small = runner(1, 1, graphs)
            run_rungs(runner(1, 1), runner(1, 1), inputs, (inputs.rungs[-1],), lambda *_: True, device, running)
            try_capture(graphs, small, inputs)
        served = runner(num_pages, at.num_slots, graphs)
        if graphs is not None:
            capture(graphs, served, inputs, at.max_num_seqs, at.max_num_batched_tokens, running)
        config = EngineConfig(
            model=self.config.architecture,
            max_num_seqs=at.max_num_seqs,
            max_num_batched_tokens=at.max_num_batched_tokens,
            max_model_len=at.max_model_len,
            kv_cache_memory_bytes=num_pages * layout.page_bytes + at.num_slots * layout.slot_bytes,
        )
        wishes = read_wishes(config, self.config, device)
        plan = solve(
            wishes, Known.before_loading(config, device).measured(layout, 0, 0, {at.max_num_batched_tokens: 0})
        )
        return Engine(
            scheduler=Scheduler(scheduler_limits(config, self.config, plan, device)),
            runner=served,
            watch=watch,
            device=device,
            vocab_size=self.config.vocab_size,
            memory_plan=plan,
            guides=guides,
        )


class _AlignedInputs(InputBuilder):
    """On tensors without data a launch cannot see where a view begins: one off its 16 bytes would be another binary."""

    def build(self, plan: StepPlan) -> BuiltStep:
        built = super().build(plan)
        for step in (built.inputs, built.samples, *built.samples.slabs):
            _assert_aligned(step)
        return built


def check(config: ModelConfig, name: str, gpu: str, *, num_steps: int = 300, seed: int = 0) -> CheckReport:
    """Raises ConfigError for an unknown GPU, WarmupError if a kernel does not compile for it or does not fit."""
    checker = Checker(config)
    with dry.gpu(gpu) as stand_in, Watch() as watch:
        report = checker.warm_up()
        watch.seal()
        record = checker.run(num_steps, watch, seed, rehearsed=True)
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
    for item in fields(step):  # type: ignore[arg-type]  # a step and its parts are dataclasses
        value = getattr(step, item.name)
        if isinstance(value, Tensor):
            address = value.storage_offset() * value.element_size()
            assert address % 16 == 0, f"{item.name} of the step is at {address:#x}"
        elif hasattr(value, "__dataclass_fields__"):
            _assert_aligned(value)
