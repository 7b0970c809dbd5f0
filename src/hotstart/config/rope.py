"""Rope: how a checkpoint's config asks for rotary positions, in the old spelling or the new."""

from dataclasses import dataclass

from hotstart.config.fields import Fields
from hotstart.errors import ConfigError, UnsupportedModel

__all__ = ["Rope", "Yarn", "read_rope"]

# The three rows of M-RoPE are equal for text, so its sections cannot matter.
_HARMLESS_ROPE = frozenset(["mrope_section", "mrope_interleaved"])


@dataclass(frozen=True, slots=True)
class Yarn:
    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    attention_factor: float | None  # None: 0.1 ln(factor) + 1
    truncate: bool


@dataclass(frozen=True, slots=True)
class Rope:
    theta: float
    rotary_dim: int  # the first of each head's dims, in two halves
    yarn: Yarn | None = None


def read_rope(fields: Fields, head_dim: int, max_positions: int) -> tuple[Rope, int]:
    """Values inside rope_parameters (older name: rope_scaling) win over the flat spelling."""
    rope = fields.inner("rope_parameters") or fields.inner("rope_scaling") or Fields({}, fields.where)
    fields.mark("rope_parameters", "rope_scaling")
    theta = rope.number("rope_theta", default=fields.number("rope_theta", default=10_000.0))
    factor = rope.number("partial_rotary_factor", default=fields.number("partial_rotary_factor", default=0.25))
    kind = rope.optional_string("rope_type") or rope.optional_string("type") or "default"
    rope.mark("rope_type", "type")
    rotary_dim = int(head_dim * factor)
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim:
        raise ConfigError(
            f"{fields.where}partial_rotary_factor {factor} of head_dim {head_dim} rotates {rotary_dim} dims; "
            f"expected an even number from 2 to {head_dim}"
        )
    yarn = None
    if kind == "yarn":
        yarn = Yarn(
            factor=rope.number("factor"),
            original_max_position_embeddings=rope.integer("original_max_position_embeddings", default=max_positions),
            beta_fast=rope.number("beta_fast", default=32.0),
            beta_slow=rope.number("beta_slow", default=1.0),
            attention_factor=rope.optional_number("attention_factor"),
            truncate=rope.boolean("truncate", default=True),
        )
        max_positions = max(max_positions, int(yarn.original_max_position_embeddings * yarn.factor))
    elif kind != "default":
        raise UnsupportedModel(f"{rope.where}rope_type is {kind!r}, hotstart implements 'default' and 'yarn'")
    if unread := sorted(rope.unread() - _HARMLESS_ROPE):
        raise UnsupportedModel(f"{rope.where}{unread[0]} is not implemented for rope_type {kind!r}; all: {unread}")
    return Rope(theta, rotary_dim, yarn), max_positions
