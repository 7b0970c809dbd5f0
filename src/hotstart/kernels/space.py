"""LaunchSpace: all that can change a binary, written once by start-up and read by every warm-up."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hotstart.kernels.ops import AttentionDims, GdnDims, GdnWeights, MoeDims, Prefill
from hotstart.kernels.step import Step

__all__ = ["LaunchSpace"]


def _no_prompts(device: torch.device, lengths: tuple[int, ...]) -> Step:
    raise AssertionError("this space was made without prompts to tune on")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpace:
    """All that can change a binary.  A warm-up makes its tensors here and passes them to the op that layers call.

    `step(device)` builds a real step by the code that serving uses: several decode and several prefill sequences,
    slots below `num_slots`, pages below `num_pages`, `num_tokens` rows.  Never one token: PyTorch reports other
    strides there.  `prompts(device, lengths)` is a real step of prompts alone, each from zero and with a slot of its
    own, 0 for the first: what tuning times.
    """

    hidden_size: int
    eps: float
    activation_dtypes: tuple[torch.dtype, ...]
    step: Callable[[torch.device], Step]
    num_tokens: int
    num_slots: int
    prompts: Callable[[torch.device, tuple[int, ...]], Step] = _no_prompts
    num_pages: int = 0
    page_size: int = 16
    gdn: GdnDims | None = None
    gdn_prefill: Prefill = "triton"
    state_dtype: torch.dtype = torch.float32
    attention: AttentionDims | None = None
    moe: MoeDims | None = None
    mlp_widths: tuple[int, ...] = ()  # intermediate sizes of the dense feed-forwards
    shared_widths: tuple[int, ...] = ()  # and of shared experts
    vocab_size: int = 0
    num_positions: int = 64  # of the rotary table: enough for the steps above
    device: torch.device = field(default_factory=lambda: torch.device("meta"))

    def __post_init__(self) -> None:
        assert self.num_tokens > 1, "a warm-up with one token sees strides that serving does not have"

    def on(self, device: torch.device) -> "LaunchSpace":
        return replace(self, device=device)

    def sized(self, num_tokens: int, num_slots: int) -> "LaunchSpace":
        return replace(self, num_tokens=num_tokens, num_slots=num_slots)

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Zeros where there is memory: a warm-up's content must not be able to fault."""
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def tokens(self, width: int, dtype: torch.dtype) -> Tensor:
        return self.empty(self.num_tokens, width, dtype=dtype)

    def slots(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return self.empty(self.num_slots, *shape, dtype=dtype)

    def pages(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return self.empty(self.num_pages, self.page_size, *shape, dtype=dtype)

    def attention_inputs(
        self, dims: AttentionDims, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """A packed projection, a norm weight, a rotary table, and small pools of key and value pages."""
        rope = self.empty(self.num_positions, dims.rotary_dim, dtype=torch.float32)
        keys, values = (self.pages(dims.num_kv_heads, dims.head_dim, dtype=dtype) for _ in range(2))
        return self.tokens(dims.packed_width, dtype), self.empty(dims.head_dim, dtype=dtype), rope, keys, values

    def gdn_inputs(self, dims: GdnDims, dtype: torch.dtype) -> tuple[Tensor, GdnWeights, Tensor, Tensor]:
        """A packed projection, the weights of a mixer, and small pools of its conv and recurrent states."""
        weights = GdnWeights(
            conv=self.empty(dims.conv_channels, dims.conv_width, dtype=dtype),
            A_log=self.empty(dims.num_value_heads, dtype=torch.float32),
            dt_bias=self.empty(dims.num_value_heads, dtype=torch.float32),
            norm=self.empty(dims.value_dim, dtype=torch.float32),
        )
        conv = self.slots(dims.conv_width, dims.conv_channels, dtype=dtype)
        state = self.slots(dims.num_value_heads, dims.value_dim, dims.key_dim, dtype=self.state_dtype)
        return self.tokens(dims.packed_width, dtype), weights, conv, state
