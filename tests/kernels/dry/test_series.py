"""A step's launches, prepared once: what they hand on is what each launch for itself would, and Triton's own too."""

from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl
from steps import Row, make_step
from triton.backends.nvidia.driver import CudaLauncher

from hotstart.kernels import direct, dry, gdn_chunked, series
from hotstart.kernels.direct import fire_of
from hotstart.kernels.gdn_chunked import gdn_prefill
from hotstart.kernels.launch import LAUNCHERS, Launcher, kernel, recording
from hotstart.kernels.ops import GdnDims, GdnWeights
from hotstart.kernels.series import Call, Own, Series


@kernel
def _scale_kernel(x_ptr, sums_ptr, n: tl.int32, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(sums_ptr + offsets, tl.load(x_ptr + offsets, mask=offsets < n), mask=offsets < n)


@pytest.fixture
def scale(sm_120):
    before = list(LAUNCHERS)
    launch = Launcher(_scale_kernel, warmup=print)
    yield launch
    LAUNCHERS[:] = before


@pytest.fixture
def launched(monkeypatch):
    """What reaches the launcher of a stub GPU."""
    seen = []
    monkeypatch.setattr(dry, "_launch_nothing", lambda *args: seen.append(args))
    return seen


def compiled(launcher, **metadata):
    """A binary whose launcher is Triton's, but for the compiled function under it."""
    run = CudaLauncher.__new__(CudaLauncher)
    values = {
        "num_ctas": 1, "global_scratch_size": 0, "global_scratch_align": 128, "profile_scratch_size": 0,
        "profile_scratch_align": 1, "launch_cooperative_grid": False, "launch_pdl": True, "launch": launcher,
        "arg_annotations": "annotations", "kernel_signature": b"signature", "gsan_enabled": False,
    }  # fmt: skip
    for name, value in {**values, **metadata}.items():
        setattr(run, name, value)
    return SimpleNamespace(run=run, function=7, packed_metadata=(4, 1, 0), metadata=SimpleNamespace(**values))


@pytest.mark.parametrize("scratch_size", [0, 640])
def test_a_launch_hands_on_what_tritons_own_launcher_does(scratch_size, sm_120):
    seen = []
    binary = compiled(lambda *args: seen.append(args), global_scratch_size=scratch_size)
    memory = torch.zeros(640 * 6, dtype=torch.uint8)
    triton.set_allocator(lambda size, alignment, stream: memory[:size])
    binary.run(2, 3, 1, 99, binary.function, binary.packed_metadata, None, None, None, 0x1000, 5, "constant")
    fire, scratch_bytes = fire_of(binary)
    assert scratch_bytes == scratch_size and fire.__code__ is not direct._by_triton(binary).__code__
    fire(2, 3, 1, 99, memory.data_ptr() if scratch_size else None, (0x1000, 5, "constant"))
    theirs, ours = ([x.data_ptr() if isinstance(x, torch.Tensor) else x for x in args] for args in seen)
    assert ours == theirs


@pytest.mark.parametrize("case", ["a version that is not known", "a profile of the kernel", "another launcher"])
def test_whatever_is_not_known_goes_through_triton(case, sm_120, monkeypatch):
    seen = []
    binary = compiled(lambda *args: seen.append(args), profile_scratch_size=int(case == "a profile of the kernel"))
    if case == "a version that is not known":
        monkeypatch.setattr(triton, "__version__", "4.0.0")
    form = direct._by_triton(binary)
    if case == "another launcher":
        binary.run = lambda *args: seen.append(args)
    fire, scratch_bytes = fire_of(binary)
    assert scratch_bytes == 0 and fire.__code__ is form.__code__
    if case != "a profile of the kernel":  # for which Triton asks its own allocator
        fire(1, 1, 1, 0, None, (0x1000, 5))
        assert (0x1000, 5) in (seen[0][-2:], seen[0][-1])


def test_the_first_call_launches_one_by_one_and_the_next_what_was_prepared(scale, launched):
    x = torch.zeros(64)
    calls = [Call(scale.bind(N=16), "x sums", (2,), (n,)) for n in (3, 5)]
    both = Series("x", calls, {"other": Own(torch.float16, 3), "sums": Own(torch.float32, 16)})
    both(x)
    assert not both._ready
    launched.clear()
    both(x)
    assert both._ready and [args[-2] for args in launched] == [3, 5]
    assert {args[-4] for args in launched} == {x.data_ptr()}
    assert len({args[-3] for args in launched}) == 1
    with recording() as record:
        both(x)
    assert list(record.counts.values()) == [2]
    both(x.to("meta"))
    assert len(launched) == 4


def test_a_tensor_that_no_key_knows_is_refused_by_name(scale):
    one = Series("x", [Call(scale.bind(N=16), "x sums", (1,), (3,))], {"sums": Own(torch.float32, 16)})
    for _ in range(2):
        with pytest.raises(AssertionError, match=r"_scale_kernel: x_ptr at .* is not 16-byte aligned"):
            one(torch.zeros(65)[1:])
        one(torch.zeros(64))


def test_a_launch_that_needs_more_scratch_than_the_op_holds_is_refused(scale, monkeypatch):
    one = Series("x", [Call(scale.bind(N=16), "x sums", (3,), (3,))], {"sums": Own(torch.float32, 16)}, 100)
    one(torch.zeros(64))
    for loaded in scale.bind(N=16)._loaded.values():
        loaded.scratch_bytes = 64
    with pytest.raises(AssertionError, match="192 bytes of scratch, not 100"):
        one(torch.zeros(64))


@pytest.mark.parametrize("lengths", [(1,), (70, 3), (64 * 70,)], ids=str)
def test_prefill_hands_on_the_same_either_way(lengths, launched, monkeypatch):
    """Prepared, or each launch for itself: the same arguments in the same order."""
    dims = GdnDims(2, 4, 64, 64, conv_width=4, eps=1e-6)
    T = sum(lengths)
    packed, out = (torch.zeros(T, width, dtype=torch.bfloat16) for width in (dims.packed_width, 256))
    weights = GdnWeights(
        torch.zeros(dims.conv_channels, 4, dtype=torch.bfloat16), torch.zeros(4), torch.zeros(4), torch.zeros(64)
    )
    conv, state = torch.zeros(3, 4, dims.conv_channels, dtype=torch.bfloat16), torch.zeros(3, 4, 64, 64)
    step = make_step([], [Row(length, write=i) for i, length in enumerate(lengths)])
    memory = torch.zeros(64 << 20, dtype=torch.uint8)
    monkeypatch.setattr(series, "torch", SimpleNamespace(empty=lambda n, **_: memory[:n], uint8=torch.uint8))

    def call():
        launched.clear()
        gdn_prefill(packed, weights, conv, state, step.prefill, dims, out)
        return list(launched)

    with dry.gpu("h200"):
        call()
        with recording():
            alone = call()
        prepared = call()
    assert gdn_chunked._mixer.cache_info().hits
    assert len(prepared) >= 4 and prepared == alone
