"""What a step takes, from config.json alone: the tensors of our kernels' forward and sampling, in their order.

A second description of the layers, so tests hold it to the first: tensor by tensor, on meta, for every published size.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

from hotstart.config.model import DTYPE_BYTES, ModelConfig
from hotstart.engine.allocator import Place, Segments
from hotstart.engine.limits import StepLimits
from hotstart.engine.plan import StepPlan
from hotstart.engine.rehearsal import worst_plans
from hotstart.engine.sizes import Sizes, padded_rows
from hotstart.request import MAX_LOGPROBS

__all__ = [
    "GpuTraits",
    "StepShapes",
    "captured_bytes",
    "logit_width",
    "packed_width",
    "step_bytes",
    "worst_step_bytes",
]

SMALL_BYTES = 32 << 20  # of a step's block, for small tensors (cuda.py)

# Workspaces that kernels bound (gdn_workspace.py, gdn_slabs.py, attention_decode.py, moe_gemm.py, draw.py).
_GDN_BYTES, _GDN_ALONE, _GDN_LONG, _GDN_APART = 104 << 20, 0.57, 130, 16 << 20
_ATTENTION_BYTES, _ATTENTION_PARTS = 64 << 20, 32
_EXPERT_BYTES, _FEW_TOKENS = 128 << 20, 2
_DRAW_BLOCK = 8192


@dataclass(frozen=True, slots=True)
class GpuTraits:
    """What of a GPU decides how much kernels take."""

    arch: int
    has_large_tiles: bool  # of experts' products, which follow from the shared memory

    @classmethod
    def of(cls, arch: int, shared_bytes: int) -> "GpuTraits":
        return cls(arch, 90 <= arch < 120 and shared_bytes >= 160 << 10)

    @property
    def workspace_bytes(self) -> int:
        """Of cuBLAS, which torch takes of its allocator for each stream (PyTorch 2.11, CUDABlas's handle pool)."""
        return 32 << 20 if self.arch >= 90 else 2 * (4096 << 10) + 8 * (16 << 10)

    def expert_columns(self, rows: float, itemsize: int) -> int:
        """Of a tile, for so many rows of an expert (kernels/moe_tiles.py)."""
        if itemsize == 4:
            return 32
        if self.has_large_tiles:
            return 64 if rows <= 16 else 128 if rows <= 48 else 256
        return 64 if rows <= 16 else 128


@dataclass(frozen=True, slots=True)
class StepShapes:
    tokens: int  # rows of the step, padded
    decodes: int
    prompts: tuple[int, ...]  # lengths
    samples: int  # rows of logits, padded
    targets: int  # rows of prompts' log-probabilities, padded
    edits: bool  # of logits, by any row
    logprobs: bool

    @classmethod
    def of(cls, plan: StepPlan, tokens: int, limits: StepLimits, row_rungs: tuple[int, ...]) -> "StepShapes":
        wishes = [span.sampling for span in plan.spans if span.sampling is not None]
        targets = sum(span.length for span in plan.spans if span.prompt_logprobs is not None)
        return cls(
            tokens=tokens,
            decodes=plan.num_decodes,
            prompts=tuple(span.length for span in plan.spans[plan.num_decodes :]),
            samples=padded_rows(len(wishes), limits.slab_rows, row_rungs),
            targets=padded_rows(targets, limits.slab_rows, row_rungs),
            edits=any(wish.banned_ids or wish.bias or wish.allowed for wish in wishes),
            logprobs=any(wish.logprobs is not None for wish in wishes),
        )


def packed_width(config: ModelConfig) -> int:
    """Of a Gated DeltaNet layer's one projection: q | k | v | z | b | a, padded (kernels/ops.py)."""
    values = config.linear_num_value_heads * config.linear_value_head_dim
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    return ceil((2 * keys + 2 * values + 2 * config.linear_num_value_heads) / 64) * 64


def logit_width(config: ModelConfig) -> int:
    """Of a mixture of experts: the router's logits and the shared expert's, padded (kernels/ops.py)."""
    return ceil((config.num_experts + 1) / 8) * 8


def step_bytes(
    config: ModelConfig,
    dtype: str,
    limits: StepLimits,
    traits: GpuTraits,
    shapes: StepShapes,
) -> int:
    """What torch's allocator takes from the driver for such a step, if it finds nothing free."""
    return _Step(config, dtype, limits, traits, shapes, Segments()).run()


def worst_step_bytes(
    config: ModelConfig,
    dtype: str,
    limits: StepLimits,
    traits: GpuTraits,
    sizes: Sizes,
    num_tokens: int,
) -> int:
    """What start-up would measure for steps of so many tokens."""
    rungs, rows = sizes.token_rungs(limits.max_num_batched_tokens), sizes.row_rungs(limits.slab_rows)

    def rung(tokens: int) -> int:
        return rungs[bisect_left(rungs, tokens)]

    plans = worst_plans(rung(num_tokens), limits, thorough=True)
    shapes = [StepShapes.of(plan, rung(plan.num_tokens), limits, rows) for plan in plans]
    return max(step_bytes(config, dtype, limits, traits, one) for one in shapes) + SMALL_BYTES


def captured_bytes(
    config: ModelConfig, dtype: str, limits: StepLimits, traits: GpuTraits, shapes: Sequence[StepShapes]
) -> int:
    """What the pool of captured steps holds after these."""
    pool = Segments()
    for one in shapes:
        _Step(config, dtype, limits, traits, one, pool).run()
    return pool.peak


class _Step:
    """Tensors are taken and freed as the engine's step does; layers of a kind are alike, so two of each are enough."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: str,
        limits: StepLimits,
        traits: GpuTraits,
        shapes: StepShapes,
        segments: Segments,
    ) -> None:
        self.config, self.limits, self.traits, self.at = config, limits, traits, shapes
        self.item = DTYPE_BYTES[dtype]
        self.segments = segments
        self.live = self.most = 0  # bytes of tensors
        self._sizes: dict[Place, int] = {}

    def run(self) -> int:
        hidden = self._forward()
        self._sample()
        self.free(hidden)
        return self.segments.peak

    def take(self, num_elements: int, itemsize: int | None = None) -> Place:
        num_bytes = num_elements * (itemsize or self.item)
        place = self.segments.take(num_bytes)
        self._sizes[place] = num_bytes
        self.live += num_bytes
        self.most = max(self.most, self.live)
        return place

    def free(self, *places: Place) -> None:
        for place in places:
            self.live -= self._sizes.pop(place)
            self.segments.free(place)

    @contextmanager
    def held(self, *sizes: tuple[int, int]) -> Iterator[None]:
        """Elements and bytes of each, for as long as the block runs."""
        places = [self.take(*size) for size in sizes]
        yield
        self.free(*reversed(places))

    def _forward(self) -> Place:
        T, D = self.at.tokens, self.config.hidden_size
        residual = self.take(T * D)
        for is_attention, is_moe in self._layers():
            self.free(self._attention() if is_attention else self._gdn())
            if is_moe:
                self._experts()
            else:
                self.free(self._swiglu(self.config.intermediate_size, of_norm=True))
        out = self.take(T * D)
        self.free(residual)
        return out

    def _product(self, width: int, *, of_norm: bool = True) -> Place:
        T = self.at.tokens
        normed = [self.take(T * self.config.hidden_size)] if of_norm else []
        y = self.take(T * width)
        self.free(*normed)
        return y

    def _layers(self) -> list[tuple[bool, bool]]:
        config = self.config
        kinds = [
            (kind == "full_attention", moe) for kind, moe in zip(config.layer_types, config.moe_layers, strict=True)
        ]
        return kinds if len(kinds) <= 8 else kinds[:8]

    def _gdn(self) -> Place:
        config, T = self.config, self.at.tokens
        width = config.linear_num_value_heads * config.linear_value_head_dim
        packed, out = self._product(packed_width(config)), self.take(T * width)
        if self.at.prompts:
            with self.held((self._gdn_workspace(), 1)):
                pass
        self.free(packed)
        return out

    def _gdn_workspace(self) -> int:
        """Bytes: for q and k, where they are apart, for as many chunks as fit, and for descriptors of tiles."""
        config, C, T = self.config, self.limits.chunk_length, self.at.tokens
        heads, K, V = config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim
        alone = len(self.at.prompts) == 1
        qk = 2 * config.linear_num_key_heads * K
        apart = T * qk * self.item <= _GDN_APART or qk > 2 * heads * V
        tiles = heads * C * C if alone and not apart else heads * C * (C + K)
        floats, carry = heads * (2 * C + 4), 2 * heads * V * K
        most = max(1, (_GDN_BYTES - 4 * carry) // (self.item * tiles + 4 * floats))
        chunks = min(most, T)
        if alone:
            rows = -(-T // C)
            chunks = min(most if rows <= min(most, _GDN_LONG) else int(most * _GDN_ALONE), rows + 1)
        taken = chunks * tiles * self.item + (chunks * floats + carry) * 4
        if self.traits.arch == 90 and self.item == 2:
            taken += 640 * max(132, heads * (1 if alone else chunks))
        return taken + T * qk * self.item if apart else taken

    def _attention(self) -> Place:
        config, T = self.config, self.at.tokens
        H, Hkv, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        packed, queries, out = self._product(2 * (H + Hkv) * D), self.take(T * H * D), self.take(T * H * D)
        if self.at.decodes:
            parts = H * _ATTENTION_PARTS
            rows = self.at.decodes if self.at.prompts else T
            rows = min(max(1, _ATTENTION_BYTES // (4 * parts * D)), rows)
            with self.held((rows * parts * D, 4), (rows * parts, 4)):
                pass
        self.free(packed, queries)
        return out

    def _swiglu(self, width: int, *, of_norm: bool) -> Place:
        gate_up = self._product(2 * width, of_norm=of_norm)
        product = self.take(self.at.tokens * width)
        self.free(gate_up)
        return product

    def _experts(self) -> None:
        """kernels/moe.py, and layers/moe.py for a shared expert of another width."""
        config, T = self.config, self.at.tokens
        D, width, shared = config.hidden_size, config.moe_intermediate_size, config.shared_expert_intermediate_size
        normed, logits = self.take(T * D), self.take(T * logit_width(config))
        pairs = T * (config.num_experts_per_tok + (shared == width))
        taken = pairs * (4 * 4 + width * self.item)  # weights, experts, ranks, places; what is between the products
        if T > _FEW_TOKENS:
            columns = self.traits.expert_columns(T * config.num_experts_per_tok / config.num_experts, self.item)
            slab = max(1, min(ceil(D / columns), _EXPERT_BYTES // max(1, pairs * columns * self.item)))
            taken += slab * pairs * columns * self.item
        with self.held((taken, 1)):
            pass
        if shared != width:
            sigmoid = self.take(T)
            inner = self._swiglu(shared, of_norm=False)
            self.free(inner, self.take(T * D), sigmoid)
        self.free(logits, normed)

    def _sample(self) -> None:
        """Slab by slab; a slab's logits live until the next one's are there."""
        slabs = [(rows, True) for rows in self._cut(self.at.samples)]
        slabs += [(rows, False) for rows in self._cut(self.at.targets)]
        before: Place | None = None
        kept: list[Place] = []
        vocab = self.config.vocab_size
        for rows, is_sampled in slabs:
            inputs = self.take(rows * self.config.hidden_size)
            logits = self.take(rows * vocab)
            self.free(inputs)
            if before is not None:
                self.free(before)
            before = logits
            if is_sampled:
                kept.append(self._draw(rows))
            if self.at.logprobs or not is_sampled:
                kept += self._logprobs(rows)
        if before is not None:
            self.free(before)
        self.free(*kept)

    def _cut(self, rows: int) -> list[int]:
        slabs, rest = divmod(rows, self.limits.slab_rows)
        return [self.limits.slab_rows] * slabs + [rest] * bool(rest)

    def _draw(self, rows: int) -> Place:
        """Tokens, with two rows of candidates for each meanwhile; edits are made in a float32 copy of the logits."""
        copy = [self.take(rows * self.config.vocab_size, 4)] if self.at.edits else []
        tokens = self.take(rows, 8)
        values = self.take(rows * _DRAW_BLOCK, 4) if self.at.edits else self.take(rows * _DRAW_BLOCK)
        candidates = [values, self.take(rows * _DRAW_BLOCK, 4)]
        self.free(*copy, *candidates)
        return tokens

    def _logprobs(self, rows: int) -> list[Place]:
        vocab, top = self.config.vocab_size, min(MAX_LOGPROBS, self.config.vocab_size)
        wide = self.take(rows * vocab, 4)
        logprobs = self.take(rows * vocab, 4)
        self.free(wide)
        chosen = self.take(rows, 4)
        with self.held((rows * vocab, 2)):
            rank = self.take(rows, 8)
        kept = [chosen, rank, self.take(rows * top, 4), self.take(rows * top, 8)]
        self.free(logprobs)
        return kept
