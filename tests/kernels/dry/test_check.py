"""`check`: the whole host path for a GPU that is not here, and what it says when a warm-up is broken."""

import pytest
import torch
import triton
from tiny import CONFIGS

from hotstart.config.model import parse_model_config
from hotstart.config.published import PUBLISHED, published_config
from hotstart.engine.check import Checker, check
from hotstart.engine.stub import ReplayDevice
from hotstart.engine.traffic import random_traffic
from hotstart.errors import ConfigError, StepError
from hotstart.kernels import dry, norm
from hotstart.kernels.attention_prefill_hopper import TRITONS
from hotstart.kernels.launch import LAUNCHERS
from hotstart.kernels.watch import Watch


@pytest.fixture
def tiny():
    return parse_model_config(CONFIGS["moe"], {})


@pytest.mark.parametrize(
    ("size", "target"),
    [("qwen3.5-27b", "sm_120"), ("qwen3.5-35b-a3b", "sm_90"), ("qwen3-next-80b-a3b", "sm_80")],
)
def test_a_published_size_has_no_late_key(size, target, own_kernels):
    """Among them: three value heads a key head, six query heads a key head, a width that is no power of two."""
    report = check(published_config(size), size, target, num_steps=60)
    assert report.passed, report.explain()
    assert report.num_launches > 60
    names = {binary.key.kernel for binary in report.warmup.binaries}
    home = {launcher.kernel.name: launcher.warmup.__module__ for launcher in LAUNCHERS}
    # Where there are experts, the shared one is among them; early launches began with sm_90.
    absent = ["activation"] if "-a3b" in size else [".moe"]
    absent += [".linear_skinny"] * (target == "sm_80")
    # Hopper has its own form of attention, for such heads the only one, where Triton knows its names.
    on_hopper = target == "sm_90" and triton.__version__.startswith(TRITONS)
    absent += [".attention_prefill." if on_hopper else ".attention_prefill_hopper."]
    assert names == {name for name in own_kernels if not any(part in home[name] + "." for part in absent)}


def test_every_published_size_is_read():
    assert {published_config(name).linear_num_value_heads for name in PUBLISHED} == {16, 32, 48, 64, 128}
    with pytest.raises(ConfigError, match="a published size: qwen3"):
        published_config("qwen9")


def test_a_missing_warm_up_is_a_late_key(tiny, monkeypatch):
    monkeypatch.setattr(norm._launch, "warmup", lambda space: None)
    report = check(tiny, "tiny", "rtx5090", num_steps=20)
    assert not report.passed
    (event,) = report.late
    assert event.kind == "compile"
    assert event.key.startswith("_rms_norm_kernel(")
    assert event.cause == "this kernel was never warmed"
    assert "1 late" in report.explain()


def test_a_warm_up_of_another_state_dtype_is_named_by_its_argument(tiny):
    checker = Checker(tiny)
    warmed = Checker(tiny, state_dtype="bfloat16")
    with dry.gpu("rtx5090"), Watch() as watch:
        warmed.warm_up()
        watch.seal()
        checker.run(20, watch)
    assert watch.events
    assert all("state_ptr is *fp32, was *bf16" in event.cause for event in watch.events)


def test_sequences_that_give_way_compile_nothing(tiny):
    checker = Checker(tiny)
    with dry.gpu("rtx5090"), Watch() as watch:
        checker.warm_up()
        watch.seal()
        engine = checker._engine(watch, seed=0, rehearsed=False)
        random_traffic(engine, 60)
    assert engine.use.num_preemptions > 0 and not watch.events


def test_kernels_that_no_traffic_reaches_are_named(tiny):
    report = check(tiny, "tiny", "rtx5090", num_steps=20)
    assert report.passed and not report.unreached
    checker = Checker(tiny)
    with dry.gpu("rtx5090"), Watch() as watch:
        assert checker.warm_up().keys - checker.run(1, watch).counts.keys()


def test_a_step_tensor_off_its_alignment_fails_its_step(tiny, monkeypatch):
    staging = ReplayDevice.staging

    def off_by_eight(device, num_bytes):
        whole = staging(device, num_bytes + 8)
        return type(whole)(whole.image[8:])

    monkeypatch.setattr(ReplayDevice, "staging", off_by_eight)
    checker = Checker(tiny)
    with dry.gpu("rtx5090"), Watch() as watch, pytest.raises(StepError, match="of the step is at 0x"):
        checker.run(5, watch)


@pytest.mark.parametrize("name", ["sm_75", "gtx", "sm_120:99"])
def test_an_unknown_gpu_is_an_error_with_the_known_ones(name, tiny):
    with pytest.raises(ConfigError, match="rtx5090"):
        check(tiny, "tiny", name)


def test_a_limit_of_shared_memory_can_be_named():
    assert dry.parse_gpu("sm_120:64KiB").shared_bytes == 64 * 1024
    assert dry.parse_gpu("RTX4090").arch == 89
    assert torch.device("cpu") == dry.DryDriver(dry.GPUS["h200"]).get_active_torch_device()
