"""SchedulerLimits: what the scheduler may plan, as plain integers."""

from dataclasses import dataclass

from hotstart.errors import InvalidPrompt, PromptTooLong

__all__ = ["SchedulerLimits"]


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
    max_num_queued: int | None = None
    enable_prefix_caching: bool = False

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
