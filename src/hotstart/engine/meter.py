"""How much memory tensors take: a ledger of live storages, and a meter for what a step allocates on a CPU."""

import weakref
from enum import Enum, auto
from typing import Any

from torch import Tensor
from torch._C import DispatchKey
from torch._C import _dispatch_has_kernel_for_dispatch_key as _has_kernel
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Ledger", "StepMeter"]


class Ledger:
    """Bytes of the storages entered here that are still alive.  A storage leaves by itself when its memory is freed."""

    def __init__(self) -> None:
        self.live_bytes = 0
        self.peak_bytes = 0
        self._owners: dict[int, tuple[str, int]] = {}  # by the storage's address

    def add(self, tensor: Tensor, owner: str = "") -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._owners:
            num_bytes = storage.nbytes()
            self._owners[key] = (owner, num_bytes)
            self.live_bytes += num_bytes
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._forget, key).atexit = False

    def by_owner(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for owner, num_bytes in self._owners.values():
            totals[owner] = totals.get(owner, 0) + num_bytes
        return totals

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._owners.pop(key)[1]


class StepMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base is untyped
    """Counts the storages that torch's operators create while it is entered: what one step takes from the C allocator.

    Scratch inside a single operator is not seen.  It costs some microseconds an operator, so it runs at start-up and in
    tests, never in a served step.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler at the first operator, for seconds."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's base is untyped
        self._ledger = Ledger()

    @property
    def peak_bytes(self) -> int:
        return self._ledger.peak_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = _kinds.get(id(func))
        if kind is None:
            kind = _kinds[id(func)] = _kind(func)
        if kind in _ENTERED:
            with self:
                return func._op_dk(_ENTERED[kind], *args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if kind is _Kind.ALLOCATES:
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, Tensor):
                    self._ledger.add(tensor)
        return result


class _Kind(Enum):
    COMPOSITE = auto()  # arrives whole under inference mode; its parts are what allocates
    OURS = auto()  # as are the parts of our own operators, which are written in PyTorch
    ALLOCATES = auto()
    REUSES = auto()  # a view, or in place


_ENTERED = {_Kind.COMPOSITE: DispatchKey.CompositeImplicitAutograd, _Kind.OURS: DispatchKey.CPU}
_kinds: dict[int, _Kind] = {}  # by the operator's id: operators live as long as torch


def _kind(func: Any) -> _Kind:
    if func.namespace == "hotstart":
        return _Kind.OURS
    if _has_kernel(func.name(), DispatchKey.CompositeImplicitAutograd):
        return _Kind.COMPOSITE
    return _Kind.REUSES if any(value.alias_info for value in func._schema.returns) else _Kind.ALLOCATES
