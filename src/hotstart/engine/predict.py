"""predict(): the memory plan of a GPU that is not here, from config.json alone.

The sizing is start-up's own; only what start-up measures is foretold: most of it computed from the shapes, the rest
from the constants below, which were measured on one kind of GPU and are guesses with a range on every other.
"""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

from hotstart.cache.layout import cache_layout
from hotstart.config.engine import EngineConfig
from hotstart.config.model import DTYPE_BYTES, ModelConfig
from hotstart.engine.allocator import Segments
from hotstart.engine.memory import Measured, MemoryPlan, as_count, as_size
from hotstart.engine.predict_step import (
    GpuTraits,
    StepShapes,
    captured_bytes,
    logit_width,
    packed_width,
    worst_step_bytes,
)
from hotstart.engine.sizes import Budget, GpuSizes, gpu_budget, prompt_rungs
from hotstart.engine.sizing import Known, Peaks, read_wishes, slots_per_sequence, step_limits
from hotstart.engine.solve import fits, solve
from hotstart.engine.trial import step_sizes
from hotstart.errors import ConfigError, InsufficientMemory
from hotstart.kernels.gpus import Gpu

__all__ = ["Guess", "Prediction", "predict"]

MIB = 1 << 20


class Constants(NamedTuple):
    """What no shape tells."""

    process_bytes: tuple[int, int, int]  # beside torch's allocator: at least, expected, at most
    graph_bytes: int  # of the driver for the first captured steps
    graph_share: float  # by which graphs may be off
    origin: str
    where: str


# One table: the context, with modules of kernels and libraries, was the same for every shape.  Fitted on the shapes of
# 0.8B and 4B and a small one with experts, checked on others (docs/MEMORY.md).  A guess on another GPU has to hold for
# its driver and its architecture too.
MEASURED = {
    "NVIDIA H200": Constants(
        (669 * MIB, 689 * MIB, 749 * MIB),
        70 * MIB,
        0.1,
        "measured",
        "NVIDIA H200, driver 580, torch 2.11 with CUDA 13.0, Triton 3.6; 2026-11-22",
    )
}
ELSEWHERE = Constants((300 * MIB, 600 * MIB, 1100 * MIB), 70 * MIB, 0.5, "estimated", "never measured on this GPU")
LAYER_BYTES = 48 << 10  # of the driver, for a layer of a captured step


@dataclass(frozen=True, slots=True)
class Guess:
    """A line of the plan: between `low` and `high`, `expected` if one has to be named."""

    name: str
    origin: str  # "measured", "computed", "estimated" or "chosen"
    low: int
    expected: int
    high: int
    detail: str = ""

    @property
    def uncertainty(self) -> str:
        if self.low == self.high:
            return "exact"
        return f"-{as_size(self.expected - self.low)} +{as_size(self.high - self.expected)}"


@dataclass(frozen=True, slots=True)
class Prediction:
    model: str
    gpu: str
    guesses: tuple[Guess, ...]
    expected: MemoryPlan | None  # None: it does not fit
    worst: MemoryPlan | None  # with every guess at its pessimistic end: the verdict
    refusal: str  # why not, for the worst
    where: str

    @property
    def fits(self) -> bool:
        return self.worst is not None

    def explain(self) -> str:
        rows = [("memory", "", "bytes", "uncertainty", "")]
        rows += [(g.name, g.origin, f"{g.expected:,}", g.uncertainty, g.detail) for g in self.guesses]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        table = [
            f"{name:<{widths[0]}}  {origin:<{widths[1]}}  {size:>{widths[2]}}  {off:<{widths[3]}}  {detail}".rstrip()
            for name, origin, size, off, detail in rows
        ]
        table.insert(-1, "-" * (sum(widths) + 6))
        head = f"{self.model} on {self.gpu}: foretold, nothing was run; constants: {self.where}"
        lines = [head, *table, _limits("expected", self.expected), _limits("at worst", self.worst)]
        if self.worst is None:
            verdict = "it does not fit" if self.expected is None else "it fits as expected, and does not at worst"
            return "\n".join([*lines, f"verdict: {verdict}: {self.refusal}"])
        return "\n".join([*lines, *(f"lowered: {note}" for note in self.worst.notes), "verdict: it fits"])

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "gpu": self.gpu,
            "fits": self.fits,
            "refusal": self.refusal,
            "constants": self.where,
            "lines": [asdict(guess) for guess in self.guesses],
            "expected": self.expected and self.expected.as_dict(),
            "worst": self.worst and self.worst.as_dict(),
        }


def _limits(title: str, plan: MemoryPlan | None) -> str:
    if plan is None:
        return f"{title}: does not fit"
    return f"{title}: {plan.limits}; pages for {as_count(plan.num_pages * plan.measured.page_size, 'token')} in all"


def predict(config: EngineConfig, model: ModelConfig, name: str, gpu: Gpu) -> Prediction:
    """Raises ConfigError for wishes that no GPU of this kind could honour, or that we cannot foretell."""
    if config.kernel_backend == "torch" or config.gdn_prefill_backend not in ("auto", "triton"):
        raise ConfigError("only our own kernels are foretold; leave out --kernel-backend and --gdn-prefill-backend")
    if gpu.memory_bytes is None and config.device_memory_bytes is None:
        raise ConfigError(f"how much memory {gpu.name} has is not known here; say it with --device-memory-bytes")
    return _Predictor(config, model, gpu).run(name)


class _Ends(NamedTuple):
    """Of a guess, as far as the plan is concerned."""

    best: int
    expected: int
    worst: int

    def plus(self, num_bytes: int) -> "_Ends":
        return _Ends(*(end + num_bytes for end in self))


_EXPECTED, _WORST = 1, 2  # of _Ends


class _Predictor:
    def __init__(self, config: EngineConfig, model: ModelConfig, gpu: Gpu) -> None:
        self.config, self.model, self.gpu = config, model, gpu
        self.sizes = GpuSizes()
        self.sizes.capture_sizes = config.cudagraph_capture_sizes or GpuSizes.capture_sizes
        if config.gdn_chunk_length != "auto":
            self.sizes.chunk_length = int(config.gdn_chunk_length)
        self.wishes = read_wishes(config, model, self.sizes)
        self.limits = step_limits(config, model, self.wishes, self.sizes)
        self.dtype, states = dtypes(config, model)
        self.item = DTYPE_BYTES[self.dtype]
        self.layout = cache_layout(model, config.block_size, self.dtype, states)
        self.constants = MEASURED.get(gpu.product, ELSEWHERE)
        self.traits = GpuTraits.of(gpu.arch, gpu.shared_bytes)
        tensors = weight_tensors(model, self.item, self.limits.max_model_len)
        self.weights, self.buffers = sum(tensors), sum(self._buffer_sizes())
        held = Segments()
        for num_bytes in (self.traits.workspace_bytes, *tensors, *self._buffer_sizes()):
            held.take(num_bytes)
        self.process = _Ends(*self.constants.process_bytes).plus(held.reserved - self.weights - self.buffers)
        self.graphs = self._graphs()
        self.steps: dict[int, _Ends] = {}  # by their tokens, for every end of the plan

    def run(self, name: str) -> Prediction:
        plans: list[MemoryPlan | None] = []
        refusal = ""
        for end in (_EXPECTED, _WORST):
            try:
                plans.append(solve(self.wishes, self._measured(end)))
            except InsufficientMemory as error:
                plans.append(None)
                refusal = str(error)
        expected, worst = plans
        return Prediction(
            model=name,
            gpu=self.gpu.product if self.gpu.product != "stub" else self.gpu.name,
            guesses=self._guesses(expected, worst),
            expected=expected,
            worst=worst,
            refusal=refusal,
            where=self.constants.where,
        )

    def _measured(self, end: int) -> Measured:
        """What start-up would have found, at one end of every guess."""
        known = Known(
            budget=self._budget(end),
            process_bytes=self.process[end],
            process_detail="context, modules, workspaces; no other process",
            cache_wish=self.config.kv_cache_memory_bytes,
            slots_per_sequence=slots_per_sequence(self.config),
            fair_tokens=self.sizes.fair_tokens,
        )

        def measured(peaks: Peaks) -> Measured:
            return known.measured(self.layout, self.weights, self.buffers, peaks, graphs_bytes=self.graphs[end])

        peaks: Peaks = {}
        for size in step_sizes(*self.wishes.max_num_batched_tokens):
            peaks[size] = self._step(size)[end]
            if fits(self.wishes, measured(peaks), size):
                break
        return measured(peaks)

    def _budget(self, end: int) -> Budget:
        wish = self.config.device_memory_bytes
        least, most = self.gpu.memory_bytes or (wish or 0, wish or 0)
        card = (most, (least + most) // 2, least)[end]
        return gpu_budget(self.config, card, self.gpu.product, has_display=self.gpu.for_displays)

    def _buffer_sizes(self) -> tuple[int, ...]:
        """Staging, sampling, and the hidden states that graphs leave."""
        at, rungs = self.limits, self.sizes.decode_rungs(self.limits.max_num_seqs)
        token_rungs, row_rungs = self.sizes.token_rungs(at.max_num_batched_tokens), self.sizes.row_rungs(at.slab_rows)
        graphs = 0 if self.config.enforce_eager else rungs[-1] * self.model.hidden_size * self.item
        return at.staging_bytes(token_rungs, row_rungs), *at.sampling_sizes, graphs

    def _step(self, size: int) -> _Ends:
        """The worst steps of so many tokens."""
        if size not in self.steps:
            expected = worst_step_bytes(self.model, self.dtype, self.limits, self.traits, self.sizes, size)
            self.steps[size] = _Ends(int(expected * 0.9), expected, int(expected * 1.1))
        return self.steps[size]

    def _graphs(self) -> _Ends:
        """As start-up bounds them: the memory of the largest, and the driver's for each."""
        if self.config.enforce_eager:
            return _Ends(0, 0, 0)
        at, plain = self.limits, partial(StepShapes, targets=0, edits=False, logprobs=False)
        rungs = self.sizes.decode_rungs(at.max_num_seqs)
        wished = self.config.cudagraph_capture_sizes
        prompts = prompt_rungs(self.sizes.token_rungs(at.max_num_batched_tokens), at.max_model_len)
        prompts = tuple(rung for rung in prompts if wished is None or rung in wished)
        shapes = [plain(rung, 0, (rung,), samples=1) for rung in prompts[-1:]]
        shapes.append(plain(rungs[-1], rungs[-1], (), samples=rungs[-1]))
        tensors = captured_bytes(self.model, self.dtype, at, self.traits, shapes)
        tensors += self.traits.workspace_bytes
        # As graphs.py bounds them.
        each = max(LAYER_BYTES * self.model.num_hidden_layers, MIB)
        expected = tensors + self.constants.graph_bytes + each * (len(rungs) + len(prompts) - len(shapes))
        share = self.constants.graph_share
        return _Ends(int(expected * (1 - share)), expected, int(expected * (1 + share)))

    def _guesses(self, plan: MemoryPlan | None, worst: MemoryPlan | None) -> tuple[Guess, ...]:
        """With what is chosen from the rest, between the worst case and the expected one."""
        tokens = plan.max_num_batched_tokens if plan else self.wishes.max_num_batched_tokens.value
        step, total = self._step(tokens), _Ends(*(self._budget(end).num_bytes for end in range(3)))
        reserve = self._budget(1).reserve_bytes or 0
        origin = self.constants.origin
        first = (
            Guess("process", origin, *self.process, "context, modules, workspaces; no other process"),
            Guess("weights", "computed", *(self.weights,) * 3, self.dtype),
            Guess("buffers", "computed", *(self.buffers,) * 3, "staging and sampling"),
            Guess("step peak", "computed", *step, f"worst step of up to {tokens} tokens"),
            Guess("graphs", "estimated", *self.graphs, "captured steps"),
            Guess("reserve", "chosen", reserve, reserve, reserve, "for what no meter sees"),
        )
        least = {line.name: line.num_bytes for line in worst.lines} if worst else {}
        rest = tuple(
            Guess(
                line.name,
                "chosen",
                min(least.get(line.name, 0), line.num_bytes),
                line.num_bytes,
                max(least.get(line.name, 0), line.num_bytes),
                line.detail,
            )
            for line in (plan.lines if plan else ())
            if line.name in ("state slots", "cache pages", "unused")
        )
        kind = "chosen" if self.config.device_memory_bytes else origin
        return (*first, *rest, Guess("total", kind, min(total), total.expected, max(total), self._budget(1).source))


def dtypes(config: EngineConfig, model: ModelConfig) -> tuple[str, str]:
    """Of weights and activations, and of states."""
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    if dtype is None:
        raise ConfigError("config.json names no dtype; choose one with --dtype bfloat16 or --dtype float32")
    states = model.mamba_ssm_dtype if config.mamba_ssm_cache_dtype == "auto" else config.mamba_ssm_cache_dtype
    return dtype, states


def weight_tensors(model: ModelConfig, itemsize: int, num_positions: int) -> list[int]:
    """Bytes of every tensor that loading takes, in its order: parameters as our layers fuse them, the rotary table."""
    D, V = model.hidden_size, model.vocab_size
    heads, kv_heads, head = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    values = model.linear_num_value_heads * model.linear_value_head_dim
    channels = 2 * model.linear_num_key_heads * model.linear_key_head_dim + values
    attention = [D * 2 * (heads + kv_heads) * head, heads * head * D, head, head]
    gdn = [D * packed_width(model), values * D, channels * model.linear_conv_kernel_dim]
    single = [4 * model.linear_num_value_heads] * 2 + [4 * model.linear_value_head_dim]
    width, shared = model.moe_intermediate_size, model.shared_expert_intermediate_size
    stacked = model.num_experts + (shared == width)
    experts = [D * logit_width(model), *(stacked * D * n * width for n in (2, 1))]
    experts += [D * n * shared for n in (2, 1)] * (shared != width)
    dense = [D * 2 * model.intermediate_size, D * model.intermediate_size]
    found = [itemsize * V * D]
    for kind, is_moe in zip(model.layer_types, model.moe_layers, strict=True):
        mixer = attention if kind == "full_attention" else gdn
        found += [itemsize * n for n in (D, D, *mixer, *(experts if is_moe else dense))]
        found += [] if kind == "full_attention" else single
    found += [itemsize * D, *[itemsize * V * D] * (not model.tie_word_embeddings)]
    return [*found, 4 * num_positions * model.rope.rotary_dim]
