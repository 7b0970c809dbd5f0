"""Start-up: one function, from the user's wishes to a sealed engine.

    read config -> choose kernels -> build on meta -> load weights -> warm up kernels
      -> run every rung on a minimal cache -> plan memory -> allocate caches -> trial requests on the real path -> seal

Everything that can compile, tune, load or take memory does so before the caches are sized.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hotstart import log
from hotstart.cache.layout import CacheLayout
from hotstart.cache.tensors import CacheTensors
from hotstart.config.engine import EngineConfig
from hotstart.config.model import ModelConfig, read_model_config
from hotstart.engine.device import CpuDevice, Device
from hotstart.engine.engine import Engine
from hotstart.engine.inputs import InputBuilder, StepLimits
from hotstart.engine.kernels import KernelChoice, choose_kernels, warm_up_kernels
from hotstart.engine.memory import Measured, MemoryPlan, Wish, Wishes, as_size, fits, solve, step_sizes
from hotstart.engine.phases import OnPhase, PhaseLog, RunningPhase, ignore_phases
from hotstart.engine.rehearsal import rung_plans, trial_requests, worst_plans
from hotstart.engine.runner import Runner
from hotstart.engine.sampler import Sampler
from hotstart.engine.scheduler import Scheduler, SchedulerLimits
from hotstart.errors import ConfigError, StartupError
from hotstart.kernels.watch import MemoryWatch, Watch
from hotstart.models import build_model, resolve_dtype, resolve_state_dtype
from hotstart.models.qwen3_5 import Qwen35
from hotstart.models.weights import fill_random, load_weights

__all__ = ["start"]

Peaks = dict[int, int]  # tokens of a step -> the most bytes that such a step takes
Enough = Callable[[Peaks, int], bool]


def start(config: EngineConfig, on_phase: OnPhase = ignore_phases) -> Engine:
    """Raises ConfigError, CheckpointError, InsufficientMemory or StartupError, each with its remedy."""
    device = _device(config)
    watch = Watch(config.jit_monitor_mode, (MemoryWatch("arena", device.arena.reserved_bytes),))
    phases = PhaseLog(on_phase, device.arena.reserved_bytes)
    try:
        return _start(config, device, watch, phases)
    except BaseException:
        watch.close()
        raise


def _start(config: EngineConfig, device: Device, watch: Watch, phases: PhaseLog) -> Engine:
    known = _Known(*device.memory_limit(config.cpu_memory), device.used_bytes())
    with phases.phase("read config") as running:
        model_config = read_model_config(config.model)
        wishes = _wishes(config, model_config, device)
        running.detail = f"{model_config.architecture}, {model_config.num_hidden_layers} layers"
    with phases.phase("choose kernels") as running:
        limits = _step_limits(config, model_config, wishes, device)
        kernels = choose_kernels(config, model_config, limits, device)
        running.detail = f"prefill by {kernels.prefill}"
    with phases.phase("build model") as running:
        model = _build(config, model_config, wishes, kernels)
        layout = model.layout(config.block_size)
        weights_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        # What cannot fit is refused here, before a byte of it is loaded.
        solve(wishes, known.measured(layout, weights_bytes, 0, {wishes.max_num_batched_tokens.value: 0}))
        running.detail = f"{as_size(weights_bytes)} of weights, on meta"
    with phases.phase("load weights") as running:
        _load(config, model, device, running)
        weights_bytes = device.arena.reserved_bytes()
    with phases.phase("warm up kernels") as running:
        warm = warm_up_kernels(kernels, config, running)
    with phases.phase("run rungs") as running:
        inputs = InputBuilder(limits, device)
        sampler = Sampler(model.logits, model_config.vocab_size, limits, device)
        num_weights = sum(p.numel() for p in model.parameters())
        runner = partial(Runner, model, num_weights, inputs, sampler, device.step_scope)
        buffers_bytes = device.arena.reserved_bytes() - weights_bytes
        peaks = _run_rungs(
            runner(CacheTensors(layout, 1, 1, partial(device.arena.allocate, "minimal cache"))),
            inputs,
            step_sizes(*wishes.max_num_batched_tokens),
            lambda peaks, size: fits(wishes, known.measured(layout, weights_bytes, buffers_bytes, peaks), size),
            device,
            running,
        )
        running.detail = f"{len(inputs.rungs)} rungs, step peak {as_size(max(peaks.values()))}"
    with phases.phase("plan memory") as running:
        tuning_bytes = warm.tiles.scratch_bytes if warm else 0
        plan = solve(wishes, known.measured(layout, weights_bytes, buffers_bytes, peaks, tuning_bytes))
        running.detail = f"{plan.num_pages} pages, {plan.num_slots} slots"
        for note in plan.notes:
            log.info("limit lowered", what=note)
    with phases.phase("allocate caches"):
        cache = CacheTensors(layout, plan.num_pages, plan.num_slots, partial(device.arena.allocate, "cache"))
    engine = Engine(
        scheduler=Scheduler(_scheduler_limits(config, model_config, plan, device)),
        runner=runner(cache),
        watch=watch,
        device=device,
        vocab_size=model_config.vocab_size,
        memory_plan=plan,
    )
    with phases.phase("trial requests"):
        _try(engine, device)
    engine.seal(phases.report())
    return engine


@dataclass(frozen=True, slots=True)
class _Known:
    """What stands before anything is loaded."""

    total_bytes: int
    total_source: str
    process_bytes: int

    def measured(
        self, layout: CacheLayout, weights_bytes: int, buffers_bytes: int, peaks: Peaks, tuning_bytes: int = 0
    ) -> Measured:
        return Measured(
            total_bytes=self.total_bytes,
            total_source=self.total_source,
            process_bytes=self.process_bytes,
            weights_bytes=weights_bytes,
            buffers_bytes=buffers_bytes,
            step_peaks=tuple(sorted(peaks.items())),
            page_size=layout.page_size,
            page_bytes=layout.page_bytes,
            slot_bytes=layout.slot_bytes,
            tuning_bytes=tuning_bytes,
        )


def _device(config: EngineConfig) -> Device:
    if config.device == "cuda":
        raise ConfigError("--device cuda is not implemented in this version; use --device cpu")
    if config.kernel_backend == "triton":
        raise ConfigError("--kernel-backend triton needs a GPU, the device is cpu; use --kernel-backend auto")
    return CpuDevice(config.num_threads)


def _wishes(config: EngineConfig, model_config: ModelConfig, device: Device) -> Wishes:
    longest = model_config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(
            f"--max-model-len is {config.max_model_len}, the model was made for {longest} tokens; lower it"
        )
    seqs, tokens = config.max_num_seqs, config.max_num_batched_tokens
    if seqs is not None and tokens is not None and tokens < seqs:
        raise ConfigError(
            f"--max-num-batched-tokens is {tokens}, less than --max-num-seqs {seqs}: every running sequence needs a "
            "token of each step; raise it or lower --max-num-seqs"
        )
    length = config.max_model_len or min(longest, device.default_model_len)
    seqs = seqs or min(device.default_num_seqs, tokens or device.default_num_seqs)
    # A step never holds more tokens than all sequences together have.
    tokens = tokens or min(max(device.default_num_batched_tokens, seqs), seqs * length)
    return Wishes(
        max_model_len=Wish(length, config.max_model_len is not None),
        max_num_seqs=Wish(seqs, config.max_num_seqs is not None),
        max_num_batched_tokens=Wish(tokens, config.max_num_batched_tokens is not None),
    )


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
        load_weights(model, config.model, allocate, running.progress)


def _step_limits(config: EngineConfig, model_config: ModelConfig, wishes: Wishes, device: Device) -> StepLimits:
    return StepLimits(
        max_num_seqs=wishes.max_num_seqs.value,
        max_num_batched_tokens=wishes.max_num_batched_tokens.value,
        max_model_len=wishes.max_model_len.value,
        page_size=config.block_size,
        chunk_length=device.chunk_length,
        slab_rows=device.slab_rows,
        num_slots=wishes.max_num_seqs.value,
        num_end_ids=len(model_config.eos_token_ids),
    )


def _scheduler_limits(
    config: EngineConfig, model_config: ModelConfig, plan: MemoryPlan, device: Device
) -> SchedulerLimits:
    return SchedulerLimits(
        max_num_seqs=plan.max_num_seqs,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        max_model_len=plan.max_model_len,
        num_pages=plan.num_pages,
        num_slots=plan.num_slots,
        page_size=config.block_size,
        chunk_length=device.chunk_length,
        eos_token_ids=model_config.eos_token_ids,
        seed=config.seed,
    )


def _run_rungs(
    runner: Runner, inputs: InputBuilder, sizes: tuple[int, ...], enough: Enough, device: Device, running: RunningPhase
) -> Peaks:
    """Measure the worst steps of `sizes`, largest first, until one leaves enough memory; then run all smaller rungs."""
    peaks: dict[int, int] = {}
    for size in sizes:
        peaks[size] = 0
        worst = worst_plans(inputs.rung(size), inputs.limits)
        for done, plan in enumerate(worst):
            running.progress(done, len(worst) + len(inputs.rungs))
            with device.measure_peak() as peak:
                runner.launch(plan).wait()
            peaks[size] = max(peaks[size], peak.num_bytes)
        if enough(peaks, size):
            break
    rest = [rung for rung in inputs.rungs if rung < inputs.rung(size)]
    for done, rung in enumerate(reversed(rest)):
        running.progress(len(inputs.rungs) - len(rest) + done, len(inputs.rungs))
        for plan in rung_plans(rung, inputs.limits):
            runner.launch(plan).wait()
    running.progress(len(inputs.rungs), len(inputs.rungs))
    return peaks


def _try(engine: Engine, device: Device) -> None:
    """Small requests, all at once, through everything that a request meets; one of them is aborted."""
    requests = trial_requests(engine.memory_plan.max_model_len, device.chunk_length)
    for request in requests:
        engine.add(request)
    events = engine.step() if requests else []
    if requests:
        events += engine.abort(requests[-1].id)
    while engine.has_work:
        events += engine.step()
    for event in events:
        if event.error is not None:
            raise StartupError(f"trial request {event.request_id} failed: {event.error}") from event.error
    engine.check()
