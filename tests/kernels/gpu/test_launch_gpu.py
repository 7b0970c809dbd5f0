"""The launch mechanism and every watch on a real GPU."""

import pytest
import torch
import triton
import triton.language as tl
from steps import Row, make_step, moved
from test_gdn import make_dims, make_inputs

from hotstart.errors import LateEventError, WarmupError
from hotstart.kernels import norm
from hotstart.kernels.gdn_decode import gdn_decode
from hotstart.kernels.launch import LAUNCHERS, Launcher, LaunchSpace, kernel, recording
from hotstart.kernels.warm_up import warm_up
from hotstart.warmup import MemoryWatch, watch


@triton.jit
def _foreign_kernel(x_ptr, n, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(x_ptr + offsets, offsets, mask=offsets < n)


def step_on(device):
    rows = [Row(1, read=0, write=0), Row(1, read=1, write=2)]
    return moved(make_step(rows, [Row(3, write=3), Row(3, read=4, write=4)], padding=1), device)


@pytest.fixture
def space():
    return LaunchSpace(
        hidden_size=2560,
        eps=1e-6,
        activation_dtypes=(torch.bfloat16,),
        step=step_on,
        num_tokens=9,
        num_slots=6,
        gdn=make_dims(16, 32, K=128, V=128),
    )


def serve(space, count):
    dims = space.gdn
    step = moved(make_step([Row(1, read=i, write=i) for i in range(count)], []), "cuda")
    packed, weights, conv, state = (moved(x, "cuda") for x in make_inputs(dims, count, count, torch.bfloat16))
    out = torch.empty(count, dims.num_value_heads * dims.value_dim, dtype=torch.bfloat16, device="cuda")
    gdn_decode(packed, weights, conv, state, step.decode, dims, out)
    x, weight = (torch.ones(*s, dtype=torch.bfloat16, device="cuda") for s in ((count, 2560), (2560,)))
    norm.rms_norm(x, weight, space.eps)
    torch.cuda.synchronize()


def test_after_the_warm_up_nothing_compiles_or_loads(space):
    with watch("error") as seen:
        report = warm_up(space)
        seen.seal()
        with recording() as served:
            for count in (1, 2, 3, 16, 17, 64, 255):
                serve(space, count)
                seen.check()
    assert seen.events == []
    assert served.counts.keys() <= report.keys


def test_each_watch_sees_its_event():
    x = torch.zeros(64, device="cuda")
    compiled = triton.jit(_foreign_kernel.fn)
    loaded = triton.jit(_foreign_kernel.fn)
    tuned = triton.autotune([triton.Config({}, num_warps=w) for w in (1, 2)], key=["n"])(triton.jit(_foreign_kernel.fn))
    tuned[(1,)](x, 5, N=16)
    torch.cuda.empty_cache()  # of this run's benchmark buffer: the next must ask the driver again
    with watch(memory=(MemoryWatch("torch", torch.cuda.memory_reserved),)) as seen:
        compiled[(1,)](x, 5, N=16)
        loaded.warmup(x, 5, N=16, grid=(1,))
        seen.seal()
        compiled.warmup(x, 16, N=16, grid=(1,))
        loaded[(1,)](x, 5, N=16)
        tuned[(1,)](x, 7, N=16)  # takes and keeps the 256 MiB of its benchmark
        seen.check()
    assert [event.kind for event in seen.events] == ["compile", "load", "tuning", "memory"]
    assert seen.events[0].cause == "n is i32 (16 divides it), was i32"
    assert seen.events[3].num_bytes > 0


def test_in_error_mode_a_late_compile_does_not_happen():
    fresh = triton.jit(_foreign_kernel.fn)
    with watch("error") as seen:
        seen.seal()
        with pytest.raises(LateEventError):
            fresh[(1,)](torch.zeros(64, device="cuda"), 5, N=16)


@kernel
def _fault_kernel(x_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(x_ptr + offsets, offsets.to(tl.float32))


def test_a_real_launch_through_the_launcher_writes_what_it_should():
    before = list(LAUNCHERS)
    launch = Launcher(_fault_kernel, warmup=print)
    LAUNCHERS[:] = before
    for _ in range(3):  # the first by Triton's path, the others by ours
        x = torch.zeros(64, device="cuda")
        launch((1,), x, N=32)
        assert torch.equal(x[:32].cpu(), torch.arange(32.0))
        assert not x[32:].any()
    with pytest.raises(AssertionError, match="tensors are on cpu"):
        launch((1,), torch.zeros(64), N=32)


def test_a_launch_that_the_device_refuses_is_named(space):
    """More threads than a multiprocessor's registers allow, or too much shared memory: refused when loaded."""
    before = list(LAUNCHERS)
    broken = Launcher(
        _large_kernel, warmup=lambda s: broken((1,), *[s.empty(512, 512, dtype=torch.float32)] * 2, N=256, num_warps=8)
    )
    try:
        with pytest.raises(WarmupError, match=r"_large_kernel\("):
            warm_up(space)
    finally:
        LAUNCHERS[:] = before


@kernel
def _large_kernel(x_ptr, y_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(y_ptr + offsets, tl.dot(tl.load(x_ptr + offsets), tl.load(y_ptr + offsets)))
