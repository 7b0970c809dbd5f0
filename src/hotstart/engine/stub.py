"""ReplayDevice: the engine's seam to a GPU that is not here.  Tensors have shapes and no data; answers are drawn.

Whatever the engine gives to it runs through the real scheduler, step inputs, runner, layers and sampler: every launch
asks for its binary, and does nothing.  Streams, events and pinned memory have no meaning here; two steps are under way
as on a GPU, and what is recorded is called again where a graph would be replayed.
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotstart.config.engine import EngineConfig
from hotstart.engine.device import Arena, Fetched, Landing, Peak, Recorder, Staging, metered_peak
from hotstart.engine.guides import Guide, Guides
from hotstart.engine.sizes import Budget, GpuSizes, gpu_budget
from hotstart.errors import InvalidSamplingParams
from hotstart.kernels.backends import Backend
from hotstart.kernels.gpus import Gpu
from hotstart.kernels.watch import MemoryWatch
from hotstart.request import Request, StructuredOutputsParams, TokenEvent

__all__ = ["AnyGuides", "ReplayDevice"]

_META = torch.device("meta")


class ReplayDevice(GpuSizes):
    kind = "stub"
    backend: Backend = "triton"
    late_kinds = frozenset({"compile", "tuning", "load", "memory"})
    flights = 2

    def __init__(self, gpu: Gpu, seed: int = 0) -> None:
        self.torch_device = _META
        self.arena = Arena(_META)
        self.gpu = gpu
        self._dice = random.Random(seed)

    def budget(self, config: EngineConfig) -> Budget:
        """Of the GPU by name; one that is named by its architecture has what is wanted.

        What steps take of it is no question here: `hotstart plan --gpu` foretells that.
        """
        least, _ = self.gpu.memory_bytes or (1 << 60, 0)
        return gpu_budget(config, least, self.gpu.product, has_display=self.gpu.for_displays)

    def used_bytes(self) -> int:
        return 0

    def loaded_bytes(self) -> int | None:
        return None

    def used_detail(self) -> str:
        return "nothing: no GPU is here"

    def resident_bytes(self) -> int | None:
        return None

    def reserved_bytes(self) -> int:
        return self.arena.reserved_bytes()

    def memory_watches(self) -> tuple[MemoryWatch, ...]:
        return (MemoryWatch("arena", self.arena.reserved_bytes),)

    def staging(self, num_bytes: int) -> Staging:
        return _StubStaging(self.arena.allocate("staging", (num_bytes,), torch.uint8))

    def landing(self, num_bytes: int) -> Landing:
        return _StubLanding(self._dice)

    def recorder(self) -> Recorder:
        return _StubRecorder(self.arena)

    def step_scope(self, multiplications: int) -> AbstractContextManager[None]:
        return nullcontext()

    def measure_peak(self) -> AbstractContextManager[Peak]:
        return metered_peak()

    def trim(self) -> None: ...

    def hold(self, num_bytes: int) -> None: ...

    def alive(self) -> bool:
        return True


class _StubStaging:
    """Step data are written and go nowhere; the image keeps their places, so that alignments are real."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self._array: np.ndarray = np.zeros(image.numel(), dtype=np.uint8)

    def buffer(self) -> np.ndarray:
        return self._array

    def upload(self, num_bytes: int) -> None:
        assert num_bytes <= self.image.numel(), f"{num_bytes} bytes exceed an image of {self.image.numel()}"


class _StubLanding:
    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        return _StubFetched([(tensor.shape, tensor.dtype) for tensor in tensors], self._dice.randrange(2))


class _StubFetched:
    def __init__(self, shapes: list[tuple[torch.Size, torch.dtype]], value: int) -> None:
        self._shapes = shapes
        self._value = value

    def wait(self) -> Sequence[Tensor]:
        return [torch.full(shape, self._value, dtype=dtype) for shape, dtype in self._shapes]


class _StubRecorder:
    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def record(self, run: Callable[[], object]) -> Callable[[], object]:
        run()
        return run

    def taken_bytes(self) -> int:
        return self._arena.reserved_bytes()

    def forget(self) -> None: ...


class AnyGuides(Guides):
    """Every answer is of its grammar: which tokens may come changes no launch."""

    def __init__(self) -> None:
        super().__init__(None)

    @property
    def can_guide(self) -> bool:
        return True

    def prepare(self, request: Request, wish: StructuredOutputsParams) -> None:
        made: Future[Guide] = Future()
        made.set_result(Guide(None, None))  # type: ignore[arg-type]  # nobody asks for its matcher
        self._compiling[request.id] = request, made

    def follow(self, events: Sequence[TokenEvent]) -> dict[str, InvalidSamplingParams]:
        for event in events:
            if event.finish_reason is not None:
                self.drop(event.request_id)
        return {}

    def fill(self, rows: list[tuple[int, int]], masks: NDArray[np.int32]) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(None)
        return done
