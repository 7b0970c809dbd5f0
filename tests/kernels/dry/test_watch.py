"""Each watch sees exactly the one event that happens, in kernels of any author, and says what was different."""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
import triton.testing
from triton import knobs
from triton.runtime.autotuner import Autotuner

from hotstart.errors import LateEventError
from hotstart.kernels import norm
from hotstart.kernels.key import LaunchKey, explain, options_in_words
from hotstart.kernels.launch import recording, seal
from hotstart.kernels.warm_up import warm_up
from hotstart.warmup import MemoryWatch, watch

pytestmark = pytest.mark.usefixtures("sm_120")


CHECK_DISK_CACHE = Autotuner.check_disk_cache


@triton.jit
def _foreign_kernel(x_ptr, n, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(x_ptr + offsets, offsets, mask=offsets < n)


@pytest.fixture
def foreign():
    """Somebody's kernel, new to this process."""
    return triton.jit(_foreign_kernel.fn)


@pytest.fixture
def tuned():
    configs = [triton.Config({}, num_warps=warps) for warps in (1, 2)]
    return triton.autotune(configs, key=["n"])(triton.jit(_foreign_kernel.fn))


def test_a_late_compile_is_seen_with_what_changed_the_key(foreign):
    x = torch.zeros(64)
    with watch() as seen:
        foreign[(1,)](x, 5, N=16)
        seen.seal()
        foreign[(1,)](x, 7, N=16)
        assert seen.events == []
        foreign[(1,)](x, 16, N=16)
    compile_event, load = seen.events
    assert (compile_event.kind, load.kind) == ("compile", "load")
    assert compile_event.cause == "n is i32 (16 divides it), was i32"
    assert compile_event.seconds > 0
    assert load.key == "_foreign_kernel"


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ((torch.zeros(64, dtype=torch.float16), 5, 16), "x_ptr is *fp16, was *fp32"),
        ((torch.zeros(65)[1:], 5, 16), "x_ptr is *fp32 unaligned, was *fp32"),
        ((torch.zeros(64), 1, 16), "n is 1, was i32"),
        ((torch.zeros(64), 5, 32), "N is 32, was 16"),
    ],
)
def test_the_cause_names_the_argument(foreign, arguments, cause):
    x, n, N = arguments
    with watch() as seen:
        foreign[(1,)](torch.zeros(64), 5, N=16)
        seen.seal()
        foreign[(1,)](x, n, N=N)
    assert seen.events[0].cause == cause


def test_a_late_load_alone_is_seen(foreign):
    x = torch.zeros(64)
    with watch() as seen:
        foreign.warmup(x, 5, N=16, grid=(1,))  # compiles, loads nothing
        seen.seal()
        foreign[(1,)](x, 5, N=16)
        foreign[(1,)](x, 5, N=16)
    assert [event.kind for event in seen.events] == ["load"]


def test_a_late_tuning_run_is_seen_though_its_binaries_are_known(tuned):
    x = torch.zeros(64)
    with watch() as seen:
        tuned[(1,)](x, 5, N=16)
        seen.seal()
        tuned[(1,)](x, 5, N=16)
        assert seen.events == []
        tuned[(1,)](x, 7, N=16)
    (event,) = seen.events
    assert event.kind == "tuning"
    assert event.key == "_foreign_kernel(n: 7, x_ptr: *fp32)"
    assert event.cause == "n is 7, was 5"
    assert event.seconds > 0


def test_winners_read_from_the_disk_are_tuning_too(tuned, monkeypatch, tmp_path):
    """Triton's own cache of winners: nothing is measured, yet the first request waits for it."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(Autotuner, "check_disk_cache", CHECK_DISK_CACHE)  # which the stub driver does without
    tuned.cache_results = True
    x = torch.zeros(64)
    tuned[(1,)](x, 7, N=16)
    tuned.cache.clear()
    with watch() as seen:
        seen.seal()
        tuned[(1,)](x, 7, N=16)
    (event,) = seen.events
    assert event.kind == "tuning"
    assert "from the disk" in event.cause


def test_a_measurement_outside_of_the_autotuner_is_seen():
    with watch() as seen:
        seen.seal()
        triton.testing.do_bench(lambda: None)
    assert [(event.kind, event.key) for event in seen.events] == [("tuning", "triton.testing.do_bench()")]


def test_growth_of_memory_is_seen_once(caplog):
    arena = {"bytes": 1000}
    with watch(memory=(MemoryWatch("arena", lambda: arena["bytes"]), MemoryWatch("process", lambda: 5, 32))) as seen:
        arena["bytes"] = 2000
        seen.seal()
        seen.check()
        arena["bytes"] = 2100
        seen.check()
        seen.check()
    (event,) = seen.events
    assert (event.kind, event.key, event.num_bytes) == ("memory", "arena", 100)
    assert event.cause == "grew by 100 bytes to 2100, allowed 0"
    assert "late event  kind=memory" in caplog.text


def test_in_error_mode_the_event_is_raised_before_it_costs(foreign, tuned):
    x = torch.zeros(64)
    with watch("error") as seen:
        seen.seal()
        with pytest.raises(LateEventError, match=r"late compile: _foreign_kernel\(.*never warmed"):
            foreign[(1,)](x, 5, N=16)
        with pytest.raises(LateEventError, match="late tuning"):
            tuned[(1,)](x, 5, N=16)
    assert [event.kind for event in seen.events] == ["compile", "tuning"]
    assert not any(cache for cache, *_ in foreign.device_caches.values())
    foreign[(1,)](x, 5, N=16)  # the hooks are gone


HOOKS = [
    (knobs.runtime, "jit_cache_hook", "compile"),
    (Autotuner, "run", "tuning"),
    (triton.testing, "do_bench", "tuning"),
]


@pytest.mark.parametrize(("owner", "name", "kind"), HOOKS, ids=[name for _, name, _ in HOOKS])
def test_a_hook_that_was_taken_away_is_noticed_and_put_back(owner, name, kind, monkeypatch, foreign):
    with watch() as seen:
        seen.seal()
        seen.check()
        monkeypatch.setattr(owner, name, lambda *args, **keywords: None)
        seen.check()
        seen.check()
        assert [(event.kind, event.key) for event in seen.events] == [(kind, name)]
        foreign[(1,)](torch.zeros(64), 5, N=16)
        assert seen.count("compile") == 1 + (kind == "compile")


def test_a_library_that_wraps_a_hook_does_not_make_events_count_twice(monkeypatch, foreign):
    with watch() as seen:
        seen.seal()
        ours, theirs = knobs.runtime.jit_cache_hook, []
        monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **info: (theirs.append(1), ours(**info))[1])
        seen.check()
        foreign[(1,)](torch.zeros(64), 5, N=16)
    assert theirs == [1]
    assert [event.cause for event in seen.events if event.kind == "compile"] == [
        "another library replaced this hook; events may be missing",
        "this kernel was never warmed",
    ]


def test_hooks_of_others_are_called_and_left_as_they_were(monkeypatch, foreign):
    called = []
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **info: called.append(info["repr"]))
    hook, run = knobs.runtime.jit_cache_hook, Autotuner.run
    with watch(), watch():
        foreign[(1,)](torch.zeros(64), 5, N=16)
    assert len(called) == 1
    assert (knobs.runtime.jit_cache_hook, Autotuner.run) == (hook, run)


def test_two_watches_see_the_same_and_close_in_any_order(foreign):
    first, second = watch(), watch()
    first.seal()
    second.seal()
    first.close()
    foreign[(1,)](torch.zeros(64), 5, N=16)
    second.close()
    assert (len(first.events), [event.kind for event in second.events]) == (0, ["compile", "load"])


def test_our_kernels_and_the_hooks_agree_on_keys(space):
    with watch() as seen, recording() as record:
        warm_up(space)
    assert set(seen.compiled) == set(record.counts)


# A warm-up that forgot something, as it happens when it is written by hand; and what the watch says of it.


def _wrong_dtype(monkeypatch):
    def warm(space):
        warmup(replace(space, activation_dtypes=(torch.float32,)))

    warmup = norm._warmup
    monkeypatch.setattr(norm._launch, "warmup", warm)


def _nothing(monkeypatch):
    monkeypatch.setattr(norm._launch, "warmup", lambda space: None)


@pytest.mark.parametrize(
    ("break_it", "cause"),
    [(_wrong_dtype, "x_ptr is *bf16, was *fp32"), (_nothing, "this kernel was never warmed")],
)
def test_a_broken_warm_up_is_seen_at_the_first_launch(break_it, cause, space, monkeypatch):
    monkeypatch.setattr(norm._launch, "known", set())
    monkeypatch.setattr(norm._launch, "_bound", {})
    break_it(monkeypatch)
    warm_up(space)
    x, weight = (torch.zeros(*shape, dtype=torch.bfloat16) for shape in ((4, 320), (320,)))
    with seal("error"), pytest.raises(LateEventError) as error:
        norm.rms_norm(x, weight, space.eps)
    assert cause in str(error.value)


def test_invented_times_never_reach_the_disk(tuned, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tuned.cache_results = True
    tuned[(1,)](torch.zeros(64), 7, N=16)
    assert list(tmp_path.rglob("*.cubin"))
    assert not list(tmp_path.rglob("*.autotune.json"))


def test_an_option_that_goes_without_saying_is_told_by_its_value():
    few, more = (LaunchKey("k", (("N", "16"), *options_in_words({"num_warps": warps}))) for warps in (1, 4))
    assert explain(more, [few]) == "num_warps is 4, was 1"
