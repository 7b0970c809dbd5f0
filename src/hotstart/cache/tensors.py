"""CacheTensors: the device memory of pages and slots, one allocation for each kind."""

from collections.abc import Callable

import torch
from torch import Tensor

from hotstart.cache.layout import CacheLayout, TensorSpec

__all__ = ["Allocate", "CacheTensors"]

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


class CacheTensors:
    """Key and value pages, conv states and recurrent states of every layer.

    `allocate(shape, dtype)` supplies the memory, so that the caller's arena counts it.  Content is undefined: a page
    is written before it is read, and a sequence that starts from zero reads no slot.
    """

    def __init__(self, layout: CacheLayout, num_pages: int, num_slots: int, allocate: Allocate) -> None:
        self.layout = layout
        self.num_pages = num_pages
        self.num_slots = num_slots

        def take(layers: int, count: int, spec: TensorSpec, *inner: int) -> Tensor:
            return allocate((layers, *inner, count, *spec.shape), getattr(torch, spec.dtype))

        self.kv_tensor = take(len(layout.attention_layers), num_pages, layout.kv, 2)
        self.conv_tensor = take(len(layout.gdn_layers), num_slots, layout.conv)
        self.state_tensor = take(len(layout.gdn_layers), num_slots, layout.state)
        # A layer's views, made once: every step asks for them.
        self._kv = dict(
            zip(layout.attention_layers, (pair.unbind(0) for pair in self.kv_tensor.unbind(0)), strict=True)
        )
        self._conv = dict(zip(layout.gdn_layers, self.conv_tensor.unbind(0), strict=True))
        self._state = dict(zip(layout.gdn_layers, self.state_tensor.unbind(0), strict=True))

    def kv(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one attention layer, each [pages, page_size, Hkv, D]."""
        keys, values = self._kv[layer]
        return keys, values

    def conv(self, layer: int) -> Tensor:
        """Conv states of one Gated DeltaNet layer, [slots, conv_width, C]."""
        return self._conv[layer]

    def state(self, layer: int) -> Tensor:
        """Recurrent states of one Gated DeltaNet layer, [slots, HV, V, K]."""
        return self._state[layer]

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.dtype.itemsize for t in (self.kv_tensor, self.conv_tensor, self.state_tensor))
