"""Whatever part of a step fails, and however: its requests end, others get exact tokens, and the engine serves on."""

import collections
import gc
import random
import time
import weakref
from pathlib import Path

import pytest
import torch
from padding import PaddingDevice
from triton.runtime.errors import OutOfResources

from hotstart.config.engine import EngineConfig
from hotstart.engine import startup
from hotstart.engine.device import CpuDevice, _InPlace, _SharedStaging
from hotstart.engine.guides import Guides
from hotstart.engine.inputs import InputBuilder
from hotstart.engine.masks import MaskBuffer
from hotstart.engine.runner import Runner
from hotstart.engine.sampler import Sampled, Sampler
from hotstart.errors import LateEventError, StepError
from hotstart.kernels.watch import Watch
from hotstart.request import Request, SamplingParams, StructuredOutputsParams

CHECKPOINT = str(Path(__file__).parents[2] / "checkpoints" / "tiny-qwen3.5")
DICE = random.Random(3)
STEM = tuple(DICE.choices(range(5, 90), k=2 * CpuDevice.chunk_length))  # of two requests: the second finds it cached
KINDS = (  # length of the prompt after the stem, and what is asked
    (5, {}),
    (1, {"prompt_logprobs": 2}),
    (30, {"structured_outputs": StructuredOutputsParams(regex=r"\d{3}-\d{4}"), "ignore_eos": False, "max_tokens": 20}),
    (3, {"repetition_penalty": 1.3, "frequency_penalty": 0.5}),
    (90, {"allowed_token_ids": tuple(range(5, 60)), "logprobs": 3}),
    (20, {"temperature": 0.9, "bad_word_ids": ((7, 8), (9,))}),
    (7, {}),
)
PHASES = [
    (InputBuilder, "build"),
    (_SharedStaging, "buffer"),
    (_SharedStaging, "upload"),
    (Runner, "_forward"),
    (Sampler, "run"),
    (Sampler, "draw"),
    (MaskBuffer, "start"),
    (Guides, "_fill"),
    (MaskBuffer, "upload"),
    (_InPlace, "fetch"),
    (_InPlace, "wait"),
    (Sampled, "result"),
    (Watch, "check"),
]
ERRORS = [
    torch.OutOfMemoryError("made up"),
    MemoryError("made up"),
    RuntimeError("made up"),
    ValueError("made up"),
    AssertionError("made up"),
    OutOfResources(300_000, 232_448, "made up"),  # of Triton: an Exception, and nothing else
    LateEventError("late compile: made up"),
]


def requests():
    dice = random.Random(7)
    for seed, (length, wishes) in enumerate(KINDS):
        stem = STEM if seed in (0, len(KINDS) - 1) else ()
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 6, "ignore_eos": True, "seed": seed, **wishes})
        yield Request(f"r{seed}", stem + tuple(dice.choices(range(5, 90), k=length)), params, 0.0)


def serve(engine):
    """Two more requests before each step; the tokens, and the last event of each."""
    tokens, ends, waiting = collections.defaultdict(tuple), {}, list(requests())
    while waiting or engine.has_work:
        for request in waiting[:2]:
            engine.add(request)
        del waiting[:2]
        for event in engine.step():
            assert event.request_id not in ends, "an event after the final one"
            tokens[event.request_id] += event.token_ids
            if event.finish_reason is not None:
                ends[event.request_id] = event
        engine.check()
    assert len(ends) == len(KINDS), "a request without its final event"
    assert engine.use.pages_used == engine.use.slots_used == 0
    return dict(tokens), ends


@pytest.fixture(scope="module", params=[CpuDevice, PaddingDevice])
def engine(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "CpuDevice", request.param)
        engine = startup.start(
            EngineConfig(
                model=CHECKPOINT,
                device="cpu",
                dtype="float32",
                max_model_len=256,
                max_num_seqs=4,
                max_num_batched_tokens=64,
                num_threads=1,
                jit_monitor_mode="error",
                enable_prefix_caching=True,
                cpu_memory="2GiB",
            )
        )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected(engine):
    tokens, ends = serve(engine)
    assert {event.error for event in ends.values()} == {None}
    return tokens


@pytest.mark.parametrize(("owner", "name"), PHASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_step_that_fails_anywhere_ends_its_requests_alone(owner, name, engine, expected, monkeypatch):
    """Twice, early and late, each with another error."""
    whole = getattr(owner, name)
    first = PHASES.index((owner, name))
    for number, when in enumerate((3, 8)):
        error, calls = ERRORS[(first + number) % len(ERRORS)], []

        def failing(*args, error=error, calls=calls, when=when, **keywords):
            calls.append(name)
            if len(calls) == when:
                raise error
            return whole(*args, **keywords)

        monkeypatch.setattr(owner, name, failing)
        tokens, ends = serve(engine)
        monkeypatch.setattr(owner, name, whole)
        failed = {id for id, event in ends.items() if event.error is not None}
        assert 0 < len(failed) <= 4, f"{failed} of 4 that run at once"
        for id in failed:
            assert isinstance(ends[id].error, StepError) and "made up" in str(ends[id].error)
            assert ends[id].error is error or ends[id].error.__cause__ is error
        assert {id: tokens[id] for id in tokens if id not in failed} == {
            id: expected[id] for id in expected if id not in failed
        }
    assert serve(engine)[0] == expected
    assert engine.late_events == () and engine.growth.arena_bytes == 0


def test_growth_ends_the_step_that_grew(start_engine, monkeypatch):
    """The second of two that are in flight at once; the first has filled a step by itself."""
    monkeypatch.setattr(CpuDevice, "flights", 2)
    engine, forward, calls, leaks = start_engine(), Runner._forward, [], []

    def growing(self, built, **how):
        calls.append(built)
        if len(calls) == 2:
            leaks.append(engine.device.arena.allocate("leak", (1000,), torch.uint8))
        return forward(self, built, **how)

    monkeypatch.setattr(Runner, "_forward", growing)
    for id, length in (("innocent", 64), ("grows", 5)):
        engine.add(Request(id, (7,) * length, SamplingParams(max_tokens=1, ignore_eos=True), 0.0))
    errors = {}
    while engine.has_work:
        errors |= {event.request_id: event.error for event in engine.step()}
    assert errors["innocent"] is None and isinstance(errors["grows"], LateEventError)
    assert leaks and engine.late_counts["memory"] == 1


def test_what_an_allocator_gave_back_is_held_again(start_engine, monkeypatch):
    """As torch's does for a GPU before it says that there is no memory."""
    engine = start_engine()
    plan, held, reserved = engine.memory_plan, [], engine.device.reserved_bytes()
    monkeypatch.setattr(CpuDevice, "reserved_bytes", lambda device: reserved if held else reserved - 1)
    monkeypatch.setattr(CpuDevice, "hold", lambda device, num_bytes: held.append(num_bytes))

    def failing(*_, **__):
        raise torch.OutOfMemoryError("made up")

    for forward in (failing, Runner._forward):
        monkeypatch.setattr(Runner, "_forward", forward)
        engine.add(Request("r", (1, 2), SamplingParams(max_tokens=2), 0.0))
        while engine.has_work:
            engine.step()
        assert held == [plan.measured.step_peak(plan.max_num_batched_tokens)]


@pytest.mark.parametrize("name", ["_forward", "launch"])
def test_an_interrupted_step_ends_its_requests(name, engine, expected, monkeypatch):
    """Ctrl-C in a notebook, while another step may be in flight."""
    whole, calls = getattr(Runner, name), []

    def interrupted(*args, **how):
        calls.append(name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*args, **how)

    monkeypatch.setattr(Runner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        serve(engine)
    errors = [event.error for event in engine.step()]
    while engine.has_work:
        errors += [event.error for event in engine.step()]
    assert any("interrupted" in str(error) for error in errors)
    assert serve(engine)[0] == expected


def test_a_mask_that_is_late_is_not_another_steps(engine, monkeypatch):
    """A step fails while its masks are being filled; the next one has masks of its own in the same place."""
    fill, forward, calls = Guides._fill, Runner._forward, []

    def slow(*args):
        time.sleep(0.05)
        fill(*args)

    def failing_first(*args, **how):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("made up")
        time.sleep(0.1)
        return forward(*args, **how)

    monkeypatch.setattr(Guides, "_fill", slow)
    monkeypatch.setattr(Runner, "_forward", failing_first)
    events = []
    for wishes in ({"structured_outputs": StructuredOutputsParams(regex="[0-9]+")}, {"allowed_token_ids": (7,)}):
        engine.add(Request("r", (5, 6), SamplingParams(max_tokens=1, **wishes), 0.0))
        while engine.has_work:
            events += engine.step()
    assert events[0].error is not None and events[1].token_ids == (7,)


@pytest.mark.parametrize(
    ("owner", "name"), [(Runner, "_forward"), (Sampler, "run"), (_InPlace, "wait"), (Guides, "_fill")]
)
def test_an_error_that_is_kept_keeps_no_memory_of_its_step(owner, name, engine, monkeypatch):
    """Without a collection of garbage: on a GPU the next step would not find what the failed one held."""
    held = []

    def kernel():
        logits = torch.empty(1000)
        held.append(weakref.ref(logits))
        raise KeyError("cause")

    def failing(*_, **__):
        rows = torch.empty(1000)
        held.append(weakref.ref(rows))
        try:
            kernel()
        except KeyError as cause:
            raise RuntimeError("made up") from cause

    monkeypatch.setattr(owner, name, failing)
    gc.disable()
    try:
        wish = StructuredOutputsParams(regex="[0-9]+")
        engine.add(Request("r", (5, 6), SamplingParams(max_tokens=2, structured_outputs=wish), 0.0))
        events = []
        while engine.has_work:
            events += engine.step()
        assert "made up" in str(events[-1].error)
        assert held and {ref() for ref in held} == {None}
    finally:
        gc.enable()
