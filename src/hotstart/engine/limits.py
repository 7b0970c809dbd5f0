"""SchedulerLimits: what the scheduler may plan; StepLimits: what bounds every step.  Plain integers."""

from collections.abc import Sequence
from dataclasses import dataclass

from hotstart.errors import InvalidPrompt, PromptTooLong
from hotstart.request import MAX_BAD_WORDS, MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS

__all__ = ["ALIGN_WORDS", "SchedulerLimits", "StepLimits"]

ALIGN_WORDS = 4  # every section of a step's data starts at a multiple of 16 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    max_num_seqs: int
    max_num_batched_tokens: int  # of one step
    max_model_len: int  # prompt and answer together
    num_pages: int
    num_slots: int
    page_size: int
    chunk_length: int  # long prompts are cut at multiples of it
    eos_token_ids: tuple[int, ...] = ()
    seed: int = 0  # from which requests without a seed draw one
    enable_prefix_caching: bool = False
    packs_slots: bool = False  # sequences move to the lowest slots, so that their states lie side by side

    @property
    def max_sequence_length(self) -> int:
        """The last token of an answer is never computed, so it needs no place in the pages."""
        return min(self.max_model_len, self.num_pages * self.page_size + 1)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def check_prompt(self, num_tokens: int) -> None:
        """Raises InvalidPrompt or PromptTooLong for a prompt that could never run."""
        if not num_tokens:
            raise InvalidPrompt("the prompt is empty; it must hold at least one token")
        if num_tokens > self.max_model_len - 1:
            raise PromptTooLong(
                f"the prompt has {num_tokens} tokens, at most {self.max_model_len - 1} are accepted, which leaves one "
                f"for the answer; shorten it or raise --max-model-len"
            )
        if self.pages_for(num_tokens) > self.num_pages:
            raise PromptTooLong(
                f"the prompt has {num_tokens} tokens and needs {self.pages_for(num_tokens)} pages of "
                f"{self.page_size}, the cache has {self.num_pages}; shorten it or give the cache more memory"
            )

    def draw_seed(self, counter: int) -> int:
        """A seed of 63 bits for the `counter`-th request, by splitmix64's finaliser (Steele et al. 2014)."""
        x = (self.seed + counter * 0x9E3779B97F4A7C15) & (2**64 - 1)
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
        return (x ^ (x >> 31)) >> 1


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What bounds every step: the sizes of all buffers follow from these."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    page_size: int
    chunk_length: int
    slab_rows: int  # rows of logits that exist at once
    num_slots: int
    num_end_ids: int  # tokens that end a sequence, beside a request's own
    vocab_size: int

    @property
    def max_pages(self) -> int:
        """Of one sequence."""
        return -(-self.max_model_len // self.page_size)

    @property
    def table_width(self) -> int:
        """Of a row of page tables: every row is aligned, so that rows of some sequences are a table too."""
        return -(-self.max_pages // ALIGN_WORDS) * ALIGN_WORDS

    @property
    def mask_words(self) -> int:
        """Bits of a row's allowed tokens, in words; rows are 16-byte aligned."""
        return -(-self.vocab_size // 128) * 4

    @property
    def sampling_sizes(self) -> tuple[int, int, int]:
        """Bytes of masks, and of the last token and all tokens by slot (see masks.py, sampler.py)."""
        masks, last, history = (
            self.max_num_seqs * self.mask_words,
            self.num_slots + 1,
            self.num_slots * self.max_model_len,
        )
        return 4 * masks, 4 * last, 4 * history

    @property
    def sampling_bytes(self) -> int:
        return sum(self.sampling_sizes)

    def staging_bytes(self, token_rungs: Sequence[int], row_rungs: Sequence[int]) -> int:
        """A bound on the data of any step within the limits, with the padding of every section (see inputs.py)."""
        tokens, seqs = token_rungs[-1], self.max_num_seqs
        spans = next((rung for rung in token_rungs if rung >= seqs), seqs)  # where a rung pads them
        samples, prompts = (count + row_rungs[-1] for count in (seqs, tokens))
        words = 4 * tokens + spans * (self.table_width + 5) + 6 * seqs + 4 * (tokens // self.chunk_length + seqs)
        words += 15 * samples + 3 * prompts
        edited = MAX_STOP_TOKEN_IDS + self.num_end_ids + MAX_LOGIT_BIAS + 2 * MAX_BAD_WORDS
        edits = seqs * (18 + 2 * edited) + 6 * ALIGN_WORDS * (seqs // self.slab_rows + 1)
        words += 1 << edits.bit_length()  # it is rounded up
        return 4 * (words + 32 * ALIGN_WORDS)
