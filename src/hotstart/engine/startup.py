"""Start-up: one function, from the user's wishes to a sealed engine.

    read config -> prepare grammars -> choose kernels -> build on meta -> load weights -> warm up kernels
      -> run every rung on a minimal cache -> plan memory -> allocate caches -> trial requests on the real path -> seal

Everything that can compile, tune, load or take memory does so before the caches are sized.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from hotstart import log
from hotstart.cache.layout import CacheLayout
from hotstart.cache.tensors import CacheTensors
from hotstart.config.engine import EngineConfig
from hotstart.config.model import ModelConfig, read_model_config
from hotstart.engine.cuda import CudaDevice
from hotstart.engine.device import CpuDevice, Device
from hotstart.engine.engine import Engine
from hotstart.engine.foretell import foretell_peaks, least_peak
from hotstart.engine.graphs import GraphBytes, StepGraphs
from hotstart.engine.guides import Guides
from hotstart.engine.head_start import hash_compiler
from hotstart.engine.inputs import InputBuilder
from hotstart.engine.kernels import KernelChoice, WarmKernels, choose_kernels, warm_up_kernels
from hotstart.engine.limits import StepLimits
from hotstart.engine.memory import Measured, MemoryPlan, Wishes, as_size
from hotstart.engine.phases import OnPhase, PhaseLog, RunningPhase, ignore_phases
from hotstart.engine.rungs import capture, run_rungs, try_capture, try_requests
from hotstart.engine.runner import Runner
from hotstart.engine.sampler import Sampler
from hotstart.engine.scheduler import Scheduler
from hotstart.engine.sizing import Known, Peaks, read_wishes, scheduler_limits, step_limits
from hotstart.engine.solve import fits, solve
from hotstart.engine.trial import step_sizes
from hotstart.errors import ConfigError, StartupError
from hotstart.kernels.backends import replays, replays_prompts
from hotstart.kernels.watch import Watch
from hotstart.models import build_model, resolve_dtype, resolve_state_dtype
from hotstart.models.qwen3_5 import Qwen35
from hotstart.models.weights import fill_random, load_weights
from hotstart.text.grammar import Grammars

__all__ = ["start"]


def start(config: EngineConfig, on_phase: OnPhase = ignore_phases) -> Engine:
    """Raises ConfigError, CheckpointError, InsufficientMemory or StartupError, each with its remedy."""
    device = _device(config)
    watch = Watch(config.jit_monitor_mode, device.memory_watches())
    phases = PhaseLog(on_phase, device.arena.reserved_bytes)
    try:
        return _start(config, device, watch, phases)
    except BaseException:
        watch.close()
        raise


def _start(config: EngineConfig, device: Device, watch: Watch, phases: PhaseLog) -> Engine:
    loaded = _load_model(config, device, phases)
    parts = _size(loaded, device, phases)
    plan = parts.plan
    with phases.phase("allocate caches"):
        device.trim()
        take = partial(device.arena.allocate, "cache")
        runner = parts.runner(CacheTensors(loaded.layout, plan.num_pages, plan.num_slots, take), parts.graphs)
    if parts.graphs is not None:
        with phases.phase("capture graphs") as running:
            _capture(parts, parts.graphs, runner, device, running)
    engine = Engine(
        scheduler=Scheduler(scheduler_limits(config, loaded.model_config, plan, device)),
        runner=runner,
        watch=watch,
        device=device,
        vocab_size=loaded.model_config.vocab_size,
        memory_plan=plan,
        guides=loaded.guides,
    )
    with phases.phase("trial requests"):
        device.hold(plan.measured.step_peak(plan.max_num_batched_tokens))
        if not config.unsafe_skip_warmup:
            try_requests(engine, device)
    if loaded.warm is not None:
        engine.warm_kernels = loaded.warm.by_kernel()
    engine.seal(phases.report())
    return engine


def _capture(parts: "_Parts", graphs: StepGraphs, runner: Runner, device: Device, running: RunningPhase) -> None:
    """For good.  Raises StartupError if that takes what the plan has given to others."""
    plan, before = parts.plan, (device.resident_bytes() or 0) - parts.kept_bytes
    capture(graphs, runner, parts.inputs, plan.max_num_seqs, plan.max_num_batched_tokens, running)
    taken, bound = (device.resident_bytes() or 0) - before, plan.measured.graphs_bytes
    running.detail += f", {as_size(max(taken, 0))} of {as_size(bound)}"
    if taken > bound + plan.measured.reserve_bytes:
        raise StartupError(
            f"captured steps took {as_size(taken)}, after a trial {as_size(bound)} were kept for them and "
            f"{as_size(plan.measured.reserve_bytes)} in reserve; raise --reserve-bytes, or name fewer sizes with "
            "--cudagraph-capture-sizes"
        )


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model with its weights, whose kernels are warm; nothing has run yet."""

    config: EngineConfig
    model_config: ModelConfig
    wishes: Wishes
    limits: StepLimits
    guides: Guides
    known: Known
    model: Qwen35
    layout: CacheLayout
    weights_bytes: int
    warm: WarmKernels | None

    def measured(self, device: Device, peaks: Peaks) -> Measured:
        """What is known by now; where the driver's word can be had, it is asked again."""
        process_bytes, known = device.loaded_bytes(), self.known
        if process_bytes is not None:
            known = replace(known, process_bytes=process_bytes, process_detail=device.used_detail())
        owners = device.arena.by_owner()
        buffers_bytes = sum(owners.values()) - self.weights_bytes - owners.get("minimal cache", 0)
        tuning_bytes = self.warm.tiles.scratch_bytes if self.warm else 0
        return known.measured(self.layout, self.weights_bytes, buffers_bytes, peaks, tuning_bytes)


def _load_model(config: EngineConfig, device: Device, phases: PhaseLog) -> _Loaded:
    with phases.phase("read config") as running:
        model_config = read_model_config(config.model)
        wishes = read_wishes(config, model_config, device)
        running.detail = f"{model_config.architecture}, {model_config.num_hidden_layers} layers"
    with phases.phase("prepare grammars") as running:
        guides = Guides(_grammars(config, model_config))
        running.detail = "" if guides.can_guide else "none: there is no tokenizer.json"
    compiler = hash_compiler() if device.backend == "triton" else None
    known = Known.before_loading(config, device)
    with phases.phase("choose kernels") as running:
        limits = step_limits(config, model_config, wishes, device)
        kernels = choose_kernels(config, model_config, limits, device)
        running.detail = f"prefill by {kernels.prefill}"
    with phases.phase("build model") as running:
        model = _build(config, model_config, wishes, kernels)
        layout = model.layout(config.block_size)
        weights_bytes = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        # What cannot fit is refused here, before a byte of it is loaded.
        token_rungs, row_rungs = device.token_rungs(limits.max_num_batched_tokens), device.row_rungs(limits.slab_rows)
        buffers_bytes = limits.staging_bytes(token_rungs, row_rungs) + limits.sampling_bytes
        least = 0
        if kernels.space is not None and kernels.prefill.name == "triton":
            size = step_sizes(*wishes.max_num_batched_tokens)[-1]
            least = least_peak(model_config, model.dtype, limits, size)
        peaks = {limits.max_num_batched_tokens: least}
        solve(wishes, known.measured(layout, weights_bytes, buffers_bytes, peaks, is_least=True))
        running.detail = f"{as_size(weights_bytes)} of weights, on meta"
    with phases.phase("load weights") as running:
        _load(config, model, device, running)
        weights_bytes = device.arena.by_owner()["weights"]
    with phases.phase("warm up kernels") as running:
        if compiler is not None:
            compiler.result()
        warm = warm_up_kernels(kernels, config, running)
    return _Loaded(config, model_config, wishes, limits, guides, known, model, layout, weights_bytes, warm)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What serves once there are caches, and how large they are to be."""

    plan: MemoryPlan
    inputs: InputBuilder
    runner: Callable[..., Runner]  # of a cache, and graphs or none
    graphs: StepGraphs | None
    kept_bytes: int  # of what graphs take, already taken


def _size(loaded: _Loaded, device: Device, phases: PhaseLog) -> _Parts:
    """Run every size of step, and plan with what is left."""
    config, model, limits, wishes = loaded.config, loaded.model, loaded.limits, loaded.wishes

    def enough(peaks: Peaks, size: int) -> bool:
        return fits(wishes, loaded.measured(device, peaks), size)

    with phases.phase("run rungs") as running:
        device.trim()
        inputs = InputBuilder(limits, device, loaded.guides.fill)
        sampler = Sampler(model.logits, model.ops, limits, device)
        num_weights = sum(p.numel() for p in model.parameters())
        make_runner = partial(Runner, model, num_weights, inputs, sampler, device.step_scope)
        sizes = step_sizes(*wishes.max_num_batched_tokens)
        if config.unsafe_skip_warmup:
            peaks = foretell_peaks(loaded.model_config, model.dtype, inputs, sizes, enough)
            running.detail = f"SKIPPED; foretold step peak {as_size(max(peaks.values()))}"
        else:
            minimal = _minimal_cache(loaded.layout, device)
            kinds = Runner(model.one_of_each_kind(), num_weights, inputs, sampler, device.step_scope, minimal)
            peaks = run_rungs(make_runner(minimal), kinds, inputs, sizes, enough, device, running)
            del minimal, kinds
            running.detail = f"{len(inputs.rungs)} rungs, step peak {as_size(max(peaks.values()))}"
    device.trim()
    graphs, taken = _graphs(config, model, inputs, device), GraphBytes()
    measured = loaded.measured(device, peaks)  # before the trial: what that leaves is the graphs'
    if graphs is not None:
        with phases.phase("try capture") as running:
            runner = make_runner(_minimal_cache(loaded.layout, device), graphs)
            taken = try_capture(graphs, runner, inputs)
            del runner
            running.detail = f"{len(graphs.keys)} sizes take at most {as_size(taken.bound)}"
    with phases.phase("plan memory") as running:
        plan = solve(wishes, replace(measured, graphs_bytes=taken.bound))
        running.detail = f"{plan.num_pages} pages, {plan.num_slots} slots"
        for note in plan.notes:
            log.info("limit lowered", what=note)
    return _Parts(plan, inputs, make_runner, graphs, taken.kept)


def _device(config: EngineConfig) -> Device:
    chunk_length = None if config.gdn_chunk_length == "auto" else int(config.gdn_chunk_length)
    if config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available()):
        backend = "triton" if config.kernel_backend == "auto" else config.kernel_backend
        device: Device = CudaDevice(backend, config.cudagraph_capture_sizes)
    elif config.kernel_backend == "triton":
        raise ConfigError("--kernel-backend triton needs a GPU, the device is cpu; use --kernel-backend auto")
    else:
        device = CpuDevice(config.num_threads)
    if chunk_length is not None:
        device.chunk_length = chunk_length
    if config.unsafe_skip_warmup:
        if device.backend == "torch":
            raise ConfigError("--unsafe-skip-warmup: PyTorch's operators need no warm-up that could be left out")
        log.warning(
            "UNSAFE: the warm-up is left out, so requests will compile, tune, load and take memory that nobody counted",
            flag="--unsafe-skip-warmup",
        )
    return device


def _grammars(config: EngineConfig, model_config: ModelConfig) -> Grammars | None:
    folder = Path(config.tokenizer or config.model)
    if not (folder / "tokenizer.json").is_file():
        return None
    return Grammars(folder, model_config.vocab_size, model_config.eos_token_ids)


def _minimal_cache(layout: CacheLayout, device: Device) -> CacheTensors:
    return CacheTensors(layout, 1, 1, partial(device.arena.allocate, "minimal cache"))


def _graphs(config: EngineConfig, model: Qwen35, inputs: InputBuilder, device: Device) -> StepGraphs | None:
    """None where no step is captured: on a CPU, under --enforce-eager, with ops that read the plan on the host; nor
    where nothing has run before."""
    recorder = device.recorder()
    if recorder is None or config.enforce_eager or config.unsafe_skip_warmup or not replays(model.ops):
        return None
    wished = config.cudagraph_capture_sizes
    keys = [key for key in inputs.graph_keys() if wished is None or key.tokens in wished]
    if not replays_prompts(model.ops):
        keys = [key for key in keys if not key.is_prompt]
    sizes = inputs.decode_rungs[-1], model.config.hidden_size, model.dtype
    return StepGraphs(keys, *sizes, device.arena, recorder) if keys else None


def _build(config: EngineConfig, model_config: ModelConfig, wishes: Wishes, kernels: KernelChoice) -> Qwen35:
    return build_model(
        model_config,
        kernels.ops,
        resolve_dtype(model_config, config.dtype),
        resolve_state_dtype(model_config, config.mamba_ssm_cache_dtype),
        num_positions=wishes.max_model_len.value,
    )


def _load(config: EngineConfig, model: Qwen35, device: Device, running: RunningPhase) -> None:
    allocate = partial(device.arena.allocate, "weights")
    if config.load_format == "dummy":
        fill_random(model, config.seed, allocate)
        running.detail = "random weights"
    else:
        stream_to = device.torch_device if device.kind == "cuda" else None
        load_weights(model, config.model, allocate, running.progress, stream_to)
