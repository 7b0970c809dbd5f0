"""The launch mechanism, on a stub GPU: what a kernel may look like, what a launch asserts, what a warm-up reports."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import triton.language as tl

from hotstart.errors import WarmupError
from hotstart.kernels import dry, norm
from hotstart.kernels.launch import LAUNCHERS, Launcher, LaunchSpace, kernel, recording
from hotstart.kernels.warm_up import warm_up

pytestmark = pytest.mark.usefixtures("sm_120")


def _untyped_scalar(x_ptr, n): ...


def _python_scalar(x_ptr, n: int): ...


def _default(x_ptr, n: tl.int32 = 3): ...


def _constexpr_first(x_ptr, N: tl.constexpr, n: tl.int32): ...


@pytest.mark.parametrize("function", [_untyped_scalar, _python_scalar, _default, _constexpr_first])
def test_a_parameter_outside_the_rules_is_a_type_error_at_import(function):
    with pytest.raises(TypeError, match=function.__name__):
        kernel(function)


@kernel
def _add_kernel(x_ptr, y_ptr, n: tl.int32, N: tl.constexpr):
    offsets = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets, mask=offsets < n), mask=offsets < n)


@pytest.fixture
def add():
    """A launcher of its own, taken back from the registry with all that a test adds."""
    before = list(LAUNCHERS)
    launch = Launcher(_add_kernel, warmup=lambda space: launch((1,), *[space.tokens(16, torch.float32)] * 2, 16, N=16))
    yield launch
    LAUNCHERS[:] = before


def test_a_launcher_needs_a_kernel_and_a_warmup():
    for arguments in ({}, {"warmup": None}):
        with pytest.raises(TypeError, match="warm"):
            Launcher(_add_kernel, **arguments)
    with pytest.raises(TypeError, match="@kernel"):
        Launcher(_add_kernel.jit, warmup=print)


def test_every_value_of_a_scalar_is_one_binary(add):
    x = torch.zeros(64)
    for n in (1, 2, 16, 17, 0, -1, 2**31 - 1):
        add((1,), x, x, n, N=16)
    assert [str(key) for key in add.known] == ["_add_kernel(x_ptr: *fp32, y_ptr: *fp32, n: i32, N: 16)"]
    caches = [cache for cache, *_ in _add_kernel.jit.device_caches.values()]
    assert max(len(cache) for cache in caches) == 1


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(64), torch.zeros(64, device="meta"), "y_ptr is on meta"),
        (torch.zeros(65)[1:], torch.zeros(64), "x_ptr at .* is not 16-byte aligned"),
        (torch.zeros(64), torch.zeros(64, 2)[:, 0], "y_ptr is not dense"),
    ],
)
def test_a_launch_asserts_what_its_key_relies_on(add, x, y, message):
    with pytest.raises(AssertionError, match=f"_add_kernel: {message}"):
        add((1,), x, y, 16, N=16)


def test_one_row_of_a_wider_tensor_asks_for_the_same_binary():
    weight = torch.zeros(320, dtype=torch.bfloat16)
    rows = torch.zeros(4, 640, dtype=torch.bfloat16)
    with recording() as record:
        norm.rms_norm(rows[:1, :320], weight, 1e-6)
        norm.rms_norm(rows.view(8, 320), weight, 1e-6)
        norm.rms_norm(torch.zeros(8, 320, dtype=torch.bfloat16, device="meta"), weight.to("meta"), 1e-6)
    assert list(record.counts.values()) == [3]


def test_meta_tensors_compile_and_launch_nothing(add):
    x = torch.zeros(64, device="meta")
    with recording() as record:
        add((1,), x, x, 16, N=16)
    (binary,) = record.binaries.values()
    assert binary.asm["cubin"]
    assert binary.function is None  # nothing was loaded
    assert not any(bound._loaded for bound in add._bound.values())


def test_a_warm_up_reports_every_binary(space, own_kernels, caplog):
    report = warm_up(space)
    names = {key.kernel for key in report.keys}
    assert names == own_kernels - {"_attention_prefill_hopper_kernel"}  # for no other GPU
    assert report.target == "sm_120"
    assert all(0 <= binary.shared_bytes <= 99 * 1024 for binary in report.binaries)
    assert "kernels warmed  target=sm_120" in caplog.text
    assert warm_up(space).keys == report.keys


def test_a_failing_launch_is_named_and_nothing_claims_success(space, add, caplog):
    def broken(space: LaunchSpace) -> None:
        x = space.tokens(16, torch.float32)
        add((1,), x, x, 16, N=16)
        if space.device.type != "meta":
            raise RuntimeError("no memory left")

    add.warmup = broken
    with pytest.raises(WarmupError, match=r"_add_kernel\(x_ptr: \*fp32.* on cpu: RuntimeError: no memory left"):
        warm_up(space)
    assert "kernels warmed" not in caplog.text


@kernel
def _no_kernel(x_ptr, N: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, N), tl.load(x_ptr + tl.arange(0, 16)))


def test_a_compile_that_fails_is_named(space, add):
    broken = Launcher(_no_kernel, warmup=lambda space: broken((1,), space.tokens(16, torch.float32), N=32))
    with pytest.raises(WarmupError, match=r"cannot compile _no_kernel\(x_ptr: \*fp32, N: 32\)"):
        warm_up(space)


def test_a_warm_up_that_differs_on_real_tensors_is_refused(space, add):
    def drifting(space: LaunchSpace) -> None:
        x = space.tokens(16, torch.float32 if space.device.type == "meta" else torch.float16)
        add((1,), x, x, 16, N=16)

    add.warmup = drifting
    with pytest.raises(WarmupError, match=r"_add_kernel\(x_ptr: \*fp.*tensors only"):
        warm_up(space)


@kernel
def _large_kernel(x_ptr, y_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(y_ptr + offsets, tl.dot(tl.load(x_ptr + offsets), tl.trans(tl.load(y_ptr + offsets))))


def test_a_kernel_over_the_shared_memory_of_the_gpu_fails_here(space, add):
    large = Launcher(_large_kernel, warmup=lambda s: large((1,), *[s.tokens(256, torch.float32)] * 2, N=128))
    with dry.gpu("sm_90"):
        assert max(binary.shared_bytes for binary in warm_up(space).binaries) > 99 * 1024
    with dry.gpu("sm_90:99KiB"), pytest.raises(WarmupError, match=r"_large_kernel.*OutOfResources.*shared memory"):
        warm_up(space)


def test_a_space_of_one_token_is_refused(space):
    with pytest.raises(AssertionError, match="one token"):
        replace(space, num_tokens=1)


def test_without_a_gpu_a_meta_launch_says_what_to_do():
    program = (
        "import torch; from hotstart.kernels import norm\n"
        "x = torch.zeros(2, 64, device='meta')\n"
        "norm.rms_norm(x, torch.zeros(64, device='meta'), 1e-6)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "hotstart.kernels.dry" in done.stderr.splitlines()[-1]
