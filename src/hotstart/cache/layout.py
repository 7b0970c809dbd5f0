"""CacheLayout: the shape and dtype of a page and of a slot, declared once.

The planner takes its bytes from here, and `CacheTensors` allocates from the same declaration.
"""

from dataclasses import dataclass
from math import prod

from hotstart.config.model import DTYPE_BYTES, ModelConfig

__all__ = ["CacheLayout", "TensorSpec", "cache_layout"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What one page or one slot holds in one layer."""

    shape: tuple[int, ...]
    dtype: str  # torch's name of it

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Which layers keep what.  Pages belong to attention layers, slots to Gated DeltaNet layers.

    Shapes of one layer: key page and value page [page_size, Hkv, D]; conv slot [conv_width, C], the last inputs
    before the convolution, the one at position p in row p % conv_width; state slot [HV, V, K], K last, so that one
    value row is contiguous.
    """

    page_size: int
    attention_layers: tuple[int, ...]  # indices into the model's layers
    gdn_layers: tuple[int, ...]
    kv: TensorSpec  # one key page; a value page has the same spec
    conv: TensorSpec
    state: TensorSpec

    @property
    def page_bytes(self) -> int:
        """Bytes of one page id: keys and values of all attention layers."""
        return len(self.attention_layers) * 2 * self.kv.num_bytes

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot id: conv and recurrent states of all Gated DeltaNet layers."""
        return len(self.gdn_layers) * (self.conv.num_bytes + self.state.num_bytes)


def cache_layout(config: ModelConfig, page_size: int, dtype: str, state_dtype: str) -> CacheLayout:
    kinds = list(enumerate(config.layer_types))
    key_heads, key_dim = config.linear_num_key_heads, config.linear_key_head_dim
    value_heads, value_dim = config.linear_num_value_heads, config.linear_value_head_dim
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    return CacheLayout(
        page_size=page_size,
        attention_layers=tuple(i for i, kind in kinds if kind == "full_attention"),
        gdn_layers=tuple(i for i, kind in kinds if kind == "linear_attention"),
        kv=TensorSpec((page_size, config.num_key_value_heads, config.head_dim), dtype),
        conv=TensorSpec((config.linear_conv_kernel_dim, channels), dtype),
        state=TensorSpec((value_heads, value_dim, key_dim), state_dtype),
    )
