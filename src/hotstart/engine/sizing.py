"""From the user's wishes to limits: what is asked for, what is known before anything is loaded, what bounds steps."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotstart.cache.layout import CacheLayout
from hotstart.config.engine import EngineConfig
from hotstart.config.model import ModelConfig
from hotstart.engine.limits import SchedulerLimits, StepLimits
from hotstart.engine.memory import Measured, MemoryPlan, Wish, Wishes
from hotstart.engine.sizes import Budget, Sizes
from hotstart.errors import ConfigError

if TYPE_CHECKING:
    from hotstart.engine.device import Device

__all__ = ["Known", "Peaks", "read_wishes", "scheduler_limits", "slots_per_sequence", "step_limits"]

Peaks = dict[int, int]  # tokens of a step -> the most bytes that such a step takes


@dataclass(frozen=True, slots=True)
class Known:
    """What stands before anything is loaded; `process_bytes` is measured again where it can be."""

    budget: Budget
    process_bytes: int
    process_detail: str
    cache_wish: int | None
    slots_per_sequence: int
    fair_tokens: int

    @classmethod
    def before_loading(cls, config: EngineConfig, device: "Device") -> "Known":
        return cls(
            budget=device.budget(config),
            process_bytes=device.used_bytes(),
            process_detail=device.used_detail(),
            cache_wish=config.kv_cache_memory_bytes,
            slots_per_sequence=slots_per_sequence(config),
            fair_tokens=device.fair_tokens,
        )

    def measured(
        self,
        layout: CacheLayout,
        weights_bytes: int,
        buffers_bytes: int,
        peaks: Peaks,
        tuning_bytes: int = 0,
        graphs_bytes: int = 0,
        is_least: bool = False,
    ) -> Measured:
        return Measured(
            total_bytes=self.budget.num_bytes,
            total_source=self.budget.source,
            total_flag=self.budget.flag,
            total_share=self.budget.share,
            card_bytes=self.budget.card_bytes,
            process_bytes=self.process_bytes,
            process_detail=self.process_detail,
            weights_bytes=weights_bytes,
            buffers_bytes=buffers_bytes,
            graphs_bytes=graphs_bytes,
            wished_reserve=self.budget.reserve_bytes,
            cache_wish=self.cache_wish,
            slots_per_sequence=self.slots_per_sequence,
            fair_tokens=self.fair_tokens,
            step_peaks=tuple(sorted(peaks.items())),
            page_size=layout.page_size,
            page_bytes=layout.page_bytes,
            slot_bytes=layout.slot_bytes,
            tuning_bytes=tuning_bytes,
            is_least=is_least,
        )


def slots_per_sequence(config: EngineConfig) -> int:
    """Its own, and one for a snapshot if prompts' states are kept."""
    return 2 if config.enable_prefix_caching else 1


def read_wishes(config: EngineConfig, model_config: ModelConfig, device: Sizes) -> Wishes:
    longest = model_config.max_position_embeddings
    wish = None if config.max_model_len == "auto" else config.max_model_len
    if wish is not None and wish > longest:
        raise ConfigError(f"--max-model-len is {wish}, the model was made for {longest} tokens; lower it")
    seqs, tokens = config.max_num_seqs, config.max_num_batched_tokens
    if seqs is not None and tokens is not None and tokens < seqs:
        raise ConfigError(
            f"--max-num-batched-tokens is {tokens}, less than --max-num-seqs {seqs}: every running sequence needs a "
            "token of each step; raise it or lower --max-num-seqs"
        )
    length = longest if config.max_model_len == "auto" else wish or min(longest, device.default_model_len)
    seqs = seqs or min(device.default_num_seqs, tokens or device.default_num_seqs)
    # A step never holds more tokens than all sequences together have.
    tokens = tokens or min(max(device.default_num_batched_tokens, seqs), seqs * length)
    return Wishes(
        max_model_len=Wish(length, wish is not None),
        max_num_seqs=Wish(seqs, config.max_num_seqs is not None),
        max_num_batched_tokens=Wish(tokens, config.max_num_batched_tokens is not None),
    )


def step_limits(config: EngineConfig, model_config: ModelConfig, wishes: Wishes, device: Sizes) -> StepLimits:
    return StepLimits(
        max_num_seqs=wishes.max_num_seqs.value,
        max_num_batched_tokens=wishes.max_num_batched_tokens.value,
        max_model_len=wishes.max_model_len.value,
        page_size=config.block_size,
        chunk_length=device.chunk_length,
        slab_rows=device.slab_rows,
        num_slots=wishes.max_num_seqs.value * slots_per_sequence(config),
        num_end_ids=len(model_config.eos_token_ids),
        vocab_size=model_config.vocab_size,
    )


def scheduler_limits(
    config: EngineConfig, model_config: ModelConfig, plan: MemoryPlan, device: Sizes
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
        enable_prefix_caching=config.enable_prefix_caching,
        packs_slots=device.packs_slots,
    )
