"""Linear: a matrix and its product.  Weights are made on the meta device; `models/weights.py` gives them memory."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hotstart.kernels.ops import Ops

if TYPE_CHECKING:
    from hotstart.layers.norm import RMSNorm

__all__ = ["Layer", "Linear", "meta_parameter"]


class Layer(nn.Module):
    """A module without hooks, whose call is `forward` and whose parts are found at once.

    In a small step on a CPU, what nn.Module does around every call and every name costs as much as a product.
    """

    if TYPE_CHECKING:
        __call__: Callable[..., Tensor]

    def __init_subclass__(cls) -> None:
        cls.__call__ = cls.forward  # type: ignore[method-assign]  # that is the point

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        super().__setattr__(name, value)
        if isinstance(value, nn.Module | nn.Parameter):
            self.__dict__[name] = value


def meta_parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A weight that has shape and dtype, and no memory yet."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


class Linear(Layer):
    """x @ weight.T, no bias, alone or as one op with what stands before or after it."""

    def __init__(self, in_features: int, out_features: int, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.ops = ops
        self.weight = meta_parameter(out_features, in_features, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:  # [T, in] -> [T, out]
        return self.ops.linear(x, self.weight)

    def of_norm(self, norm: "RMSNorm", x: Tensor) -> Tensor:  # [T, in] -> [T, out]
        return self.ops.norm_linear(x, norm.weight, norm.eps, self.weight)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:  # [T, out] in place, [T, in] -> the residual
        return self.ops.add_linear(residual, x, self.weight)
