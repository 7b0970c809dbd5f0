"""CacheLayout: the shape and dtype of a page and of a slot, declared once.

The planner takes its bytes from here, and `CacheTensors` allocates from the same declaration.
"""

from dataclasses import dataclass
from math import prod

import torch

__all__ = ["CacheLayout", "TensorSpec"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What one page or one slot holds in one layer."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


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
