"""What goes wrong ends what it must and nothing else: a bad request, a failing step, a late event, a closed engine."""

import pytest
import torch
from padding import PaddingDevice
from tiny import VOCAB

from hotstart.engine import startup
from hotstart.engine.device import CpuDevice
from hotstart.errors import (
    EngineDead,
    InvalidPrompt,
    InvalidSamplingParams,
    LateEventError,
    PromptTooLong,
    RequestError,
    StepError,
)
from hotstart.models.qwen3_5 import DecoderLayer
from hotstart.request import FinishReason, Request, SamplingParams


def request(id, length=5, **params):
    return Request(
        id, tuple(range(1, length + 1)), SamplingParams(**{"temperature": 0.0, "max_tokens": 6, **params}), 0.0
    )


def finish(engine):
    """The last event of each request, and its tokens."""
    ends, tokens = {}, {}
    while engine.has_work:
        for event in engine.step():
            tokens[event.request_id] = tokens.get(event.request_id, ()) + event.token_ids
            if event.finish_reason is not None:
                ends[event.request_id] = event
    return ends, tokens


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (Request("x", (), SamplingParams(), 0.0), InvalidPrompt, "empty"),
        (Request("x", (1, VOCAB), SamplingParams(), 0.0), InvalidPrompt, rf"token id {VOCAB}, .* \[0, {VOCAB - 1}\]"),
        (Request("x", (-1,), SamplingParams(), 0.0), InvalidPrompt, "token id -1"),
        (Request("x", (1,) * 96, SamplingParams(), 0.0), PromptTooLong, "96 tokens, .*95.*--max-model-len"),
        (Request("x", (1,), SamplingParams(stop_token_ids=(VOCAB,)), 0.0), InvalidSamplingParams, "stop_token_ids"),
        (Request("taken", (1,), SamplingParams(), 0.0), RequestError, "'taken' is in use"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_bad_request_is_refused_and_changes_nothing(bad, error, words, start_engine):
    engine = start_engine()
    engine.add(request("taken"))
    with pytest.raises(error, match=words):
        engine.add(bad)
    ends, _ = finish(engine)
    assert list(ends) == ["taken"] and ends["taken"].finish_reason is FinishReason.LENGTH
    engine.check()


@pytest.mark.parametrize("flights", [1, 2])
def test_a_failing_step_ends_its_requests_and_the_engine_serves_on(flights, start_engine, monkeypatch):
    monkeypatch.setattr(CpuDevice, "flights", flights)
    engine = start_engine(max_num_seqs=2)
    engine.add(request("before"))
    _, expected = finish(engine)

    model, calls = engine._runner._model, []

    def failing(step, cache):
        calls.append(step)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("made up")
        return model(step, cache)

    monkeypatch.setattr(engine._runner, "_model", failing)
    for id in ("a", "b", "waits"):  # two run, the third waits for a slot
        engine.add(request(id))
    ends, tokens = finish(engine)
    for id in ("a", "b"):
        assert ends[id].finish_reason is FinishReason.ERROR and isinstance(ends[id].error, StepError)
        assert "made up" in str(ends[id].error) and isinstance(ends[id].error.__cause__, torch.OutOfMemoryError)
    assert ends["waits"].error is None and tokens["waits"] == expected["before"]
    engine.check()
    assert engine._scheduler.pages.num_used == 0 and engine._scheduler.slots.num_used == 0


@pytest.mark.parametrize("device", [CpuDevice, PaddingDevice])
def test_a_late_event_in_one_layer_of_a_mixed_step_ends_that_step_alone(device, start_engine, monkeypatch):
    """Answers beside a prompt, a miss in layer 1 of 4; who comes afterwards gets exact tokens."""
    monkeypatch.setattr(startup, "CpuDevice", lambda threads: device())
    engine = start_engine("dense", max_num_seqs=3)
    engine.add(request("before", 20))
    expected = finish(engine)[1]["before"]

    layer, failed = engine._runner._model.layers[1], []

    def missing(self, residual, step, cache):
        if self is layer and not failed and step.num_decodes and step.prefill.num_sequences:
            failed.append(step)
            raise LateEventError("late compile: made up")
        return self.forward(residual, step, cache)

    monkeypatch.setattr(DecoderLayer, "__call__", missing)
    engine.add(request("answering", max_tokens=30, ignore_eos=True))
    for _ in range(3):
        engine.step()
    engine.add(request("prompt", 40))
    events = engine.step() + engine.step()
    for id in ("neighbour", "next"):
        engine.add(request(id, 20))
    ends, tokens = finish(engine)
    ends |= {event.request_id: event for event in events if event.finish_reason is not None}
    assert failed and {id for id, end in ends.items() if end.error} == {"answering", "prompt"}
    assert all(isinstance(ends[id].error, LateEventError) for id in ("answering", "prompt"))
    assert tokens["neighbour"] == tokens["next"] == expected
    engine.check()
    assert engine._scheduler.pages.num_used == 0 and engine._scheduler.slots.num_used == 0


@pytest.mark.parametrize("mode", ["warn", "error"])
def test_growth_after_the_seal_is_seen_and_ends_requests_only_if_asked(mode, start_engine, monkeypatch):
    engine = start_engine(jit_monitor_mode=mode)
    model, grown = engine._runner._model, []

    def growing(step, cache):
        if not grown:
            grown.append(engine.device.arena.allocate("leak", (1000,), torch.uint8))
        return model(step, cache)

    monkeypatch.setattr(engine._runner, "_model", growing)
    engine.add(request("unlucky"))
    ends, _ = finish(engine)
    engine.add(request("next"))
    later, _ = finish(engine)
    assert engine.late_counts["memory"] == 1 and engine.growth.arena_bytes == 1000
    assert engine.late_events[0].num_bytes == 1000 and engine.late_events[0].key == "arena"
    assert isinstance(ends["unlucky"].error, LateEventError) == (mode == "error")
    assert later["next"].error is None


def test_a_closed_engine_answers_everybody_and_takes_nobody(start_engine):
    engine = start_engine()
    for id in ("a", "b"):
        engine.add(request(id))
    engine.step()
    events = engine.close()
    assert {event.request_id for event in events} == {"a", "b"}
    assert all(isinstance(event.error, EngineDead) for event in events) and engine.close() == []
    for call in (engine.step, lambda: engine.add(request("c"))):
        with pytest.raises(EngineDead):
            call()


def test_an_abort_ends_at_once_whatever_its_state(start_engine):
    engine = start_engine(max_num_seqs=1)
    for id in ("running", "waiting"):
        engine.add(request(id))
    engine.step()
    for id in ("running", "waiting"):
        (event,) = engine.abort(id)
        assert event.finish_reason is FinishReason.ABORT
    assert engine.abort("running") == engine.abort("unknown") == [] and not engine.has_work
    engine.check()


def test_a_lost_device_answers_everybody_and_takes_nobody(start_engine, monkeypatch):
    engine = start_engine(max_num_seqs=1)
    for id in ("running", "waiting"):
        engine.add(request(id))
    engine.step()

    def faulting(step, cache):
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(engine._runner, "_model", faulting)
    monkeypatch.setattr(CpuDevice, "alive", lambda device: False)
    events = engine.step()
    assert {event.request_id for event in events} == {"running", "waiting"} and not engine.has_work and engine.is_lost
    assert all(isinstance(event.error, EngineDead) and "illegal" in str(event.error) for event in events)
    for call in (engine.step, lambda: engine.add(request("c"))):
        with pytest.raises(EngineDead, match="illegal memory access"):
            call()
    assert engine.close() == []
