"""What the hardware alone would take: bytes at the rate of a copy, multiplications at the rate of a large product.

Counted from a model's config.  Both rates were measured on an H200; no kernel reaches either all the time, and host,
launches, norms and sampling cost nothing here.
"""

from dataclasses import dataclass

from hotstart.cache.layout import cache_layout
from hotstart.config.model import ModelConfig

__all__ = ["COPY_BYTES_PER_S", "FLOPS_PER_S", "Floors"]

COPY_BYTES_PER_S = 4.26e12  # read and written, by a device copy of 2 GiB
FLOPS_PER_S = 700e12  # bfloat16, a product of 8192 x 8192 x 8192
CHUNK = 64  # tokens of a block of the delta rule
WIDTH = 2  # bytes of a weight


@dataclass(frozen=True, slots=True)
class Floors:
    config: ModelConfig
    state_dtype: str = "float32"

    @property
    def head_weights(self) -> int:
        return self.config.vocab_size * self.config.hidden_size

    def layer_weights(self, experts: float) -> float:
        """Of all layers, with so many experts each where there are any; norms and gates are nothing beside them."""
        c = self.config
        keys, values = (
            c.linear_num_key_heads * c.linear_key_head_dim,
            c.linear_num_value_heads * c.linear_value_head_dim,
        )
        heads, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        mixer = {
            "linear_attention": c.hidden_size * (2 * keys + 3 * values + 2 * c.linear_num_value_heads),
            "full_attention": c.hidden_size * (3 * heads + 2 * kv),  # queries have gates
        }
        dense = 3 * c.hidden_size * c.intermediate_size
        one = 3 * c.hidden_size * c.moe_intermediate_size
        shared = 3 * c.hidden_size * c.shared_expert_intermediate_size + c.hidden_size * c.num_experts
        feeds = [experts * one + shared if is_moe else dense for is_moe in c.moe_layers]
        return sum(mixer[kind] for kind in c.layer_types) + sum(feeds)

    def experts_read(self, tokens: int) -> float:
        """Of a layer, when every token chooses at random."""
        c = self.config
        if not c.num_experts:
            return 0.0
        return c.num_experts * (1 - (1 - c.num_experts_per_tok / c.num_experts) ** tokens)

    def decode_s(self, sequences: int, context: int) -> float:
        """One token for each: weights once, states read and written, keys and values read."""
        layout = cache_layout(self.config, 1, "bfloat16", self.state_dtype)
        weights = WIDTH * (self.layer_weights(self.experts_read(sequences)) + self.head_weights)
        caches = sequences * (2 * layout.slot_bytes + context * layout.page_bytes)
        flops = 2 * sequences * (self.layer_weights(self.config.num_experts_per_tok) + self.head_weights)
        return max((weights + caches) / COPY_BYTES_PER_S, flops / FLOPS_PER_S)

    def weights_s(self) -> float:
        """The weights of one token, once."""
        return WIDTH * (self.layer_weights(self.experts_read(1)) + self.head_weights) / COPY_BYTES_PER_S

    def prompt_flops(self, tokens: int) -> float:
        """Products, causal attention, and the chunked delta rule; logits of one position."""
        c = self.config
        attention = 2 * tokens * tokens * c.num_attention_heads * c.head_dim  # queries x keys and x values, half of it
        k, v = c.linear_key_head_dim, c.linear_value_head_dim
        rule = tokens * c.linear_num_value_heads * (6 * k * v + 2 * CHUNK * (2 * k + 2 * v))
        mixers = {"full_attention": attention, "linear_attention": rule}
        products = 2 * tokens * self.layer_weights(c.num_experts_per_tok) + 2 * self.head_weights
        return products + sum(mixers[kind] for kind in c.layer_types)

    def prompt_s(self, tokens: int) -> float:
        weights = WIDTH * (self.layer_weights(self.experts_read(tokens)) + self.head_weights) / COPY_BYTES_PER_S
        return max(weights, self.prompt_flops(tokens) / FLOPS_PER_S)

    def crowd_tokens_per_s(self, count: int, prompt: int, answer: int) -> float:
        """Prompts at the rate of products, then all answers at once: the first token of each comes from its prompt."""
        steps = sum(self.decode_s(count, prompt + i) for i in range(1, answer))
        return count * answer / (count * self.prompt_flops(prompt) / FLOPS_PER_S + steps)
