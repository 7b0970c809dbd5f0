"""The engine on a GPU: sealed under traffic, graphs equal to eager steps, launches without waits, small failures."""

import random
import subprocess
import sys
import textwrap
from functools import partial

import pytest
import torch
import triton
import triton.language as tl
from foreign import fill_with_nan, watch_foreign_memory
from tiny import VOCAB
from waits import no_waits

from hotstart.engine.cuda import SMALL_BYTES, CudaDevice
from hotstart.errors import LateEventError, StepError
from hotstart.models.qwen3_5 import DecoderLayer
from hotstart.request import FinishReason, Request, SamplingParams

LOGPROB_TOLERANCE, NEAR_TIE = 1e-4, 1e-3  # in float32
SEALED = {"compile": 0, "tuning": 0, "load": 0, "memory": 0}


FEW_PAGES = {"num_pages": 24}  # one sequence takes 16 of them


def random_request(dice, index):
    length = dice.choice((1, 2, 63, 64, 65, dice.randrange(1, 240)))
    params = SamplingParams(
        temperature=dice.choice((0.0, 0.7, 1.3)),
        top_k=dice.choice((0, 0, 1, 5)),
        top_p=dice.choice((1.0, 1.0, 0.5)),
        seed=index,
        max_tokens=dice.choice((1, 3, 30, 120)),
        min_tokens=dice.choice((0, 0, 1)),
        ignore_eos=dice.random() < 0.6,
        stop_token_ids=tuple(dice.sample(range(VOCAB), dice.choice((0, 0, 3)))),
        logprobs=dice.choice((None, None, 0, 3, 20)),
        prompt_logprobs=dice.choice((None, None, None, 0, 2)),
        min_p=dice.choice((0.0, 0.0, 0.1)),
        repetition_penalty=dice.choice((1.0, 1.0, 1.2)),
        presence_penalty=dice.choice((0.0, 0.0, 0.3)),
        frequency_penalty=dice.choice((0.0, 0.0, 0.7)),
        logit_bias=dice.choice((None, None, dict.fromkeys(dice.sample(range(VOCAB), 200), -1.0))),
        bad_word_ids=dice.choice(((), (), ((1,), (2, 3, 4), (0, 0)))),
        allowed_token_ids=dice.choice((None, None, None, tuple(dice.sample(range(VOCAB), 3)))),
    )
    return Request(f"r{index}", tuple(dice.choices(range(VOCAB), k=length)), params, 0.0)


def request(id, length=5, **params):
    wishes = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, **params}
    return Request(id, tuple(i * 7 % VOCAB for i in range(1, length + 1)), SamplingParams(**wishes), 0.0)


def serve(engine):
    """Tokens, log-probabilities and the last event of each request."""
    tokens, logprobs, ends = {}, {}, {}
    while engine.has_work:
        for event in engine.step():
            tokens[event.request_id] = tokens.get(event.request_id, ()) + event.token_ids
            logprobs.setdefault(event.request_id, []).extend(event.logprobs)
            if event.finish_reason is not None:
                ends[event.request_id] = event
    return tokens, logprobs, ends


@pytest.mark.parametrize(
    ("family", "wishes"),
    [
        ("dense", {}),
        ("moe", {}),
        ("dense", {"enforce_eager": True, "dtype": "float32"}),
        ("dense", {"kernel_backend": "torch"}),
        ("moe", {"dtype": "float16"}),
        ("dense", {"enable_prefix_caching": True, "kv_cache_memory_bytes": "2MiB"}),
        ("dense", FEW_PAGES),
        ("moe", FEW_PAGES),
        ("dense", FEW_PAGES | {"enable_prefix_caching": True}),
        ("dense", {"max_num_seqs": 1, "block_size": 48}),
        ("moe", {"max_num_seqs": 1, "max_num_batched_tokens": 1}),
    ],
    ids=str,
)
def test_random_traffic_stays_sealed(family, wishes, start_engine, few_pages):
    few_pages(wishes.get("num_pages"))
    engine = start_engine(family, **{name: wish for name, wish in wishes.items() if name != "num_pages"})
    dice, requests, ends, most = random.Random(17), 0, {}, 40 if "max_num_seqs" in wishes else 150
    while requests < most or engine.has_work:
        for _ in range(dice.choice((0, 0, 1, 3, 30)) if requests < most else 0):
            engine.add(random_request(dice, requests))
            requests += 1
        events = engine.step()
        if dice.random() < 0.05:
            events += engine.abort(f"r{dice.randrange(max(requests, 1))}")
        engine.check()
        for event in events:
            assert event.error is None, event.error
            if event.finish_reason is not None:
                ends[event.request_id] = event.finish_reason
    assert len(ends) == requests and FinishReason.ERROR not in ends.values()
    assert engine.use.num_preemptions > 0 or "num_pages" not in wishes, "no sequence had to give way"
    assert engine.late_events == () and engine.late_counts == SEALED
    assert engine.growth.arena_bytes == 0
    if engine.device.tells_processes_apart:
        assert engine.growth.resident_bytes <= 32 << 20


@pytest.mark.parametrize("way", [{"logprobs": 5}, {}, {"temperature": 0.9, "top_p": 0.9, "seed": 1}], ids=str)
def test_a_replayed_step_is_bitwise_an_eager_step_of_its_size(way, start_engine):
    """Answers, log-probabilities included, with 1 to 20 sequences on their way; what wants none is drawn in a graph."""
    found = []
    for eager in (False, True):
        engine = start_engine(enforce_eager=eager, max_num_batched_tokens=256)
        for i in range(20):
            engine.add(request(f"r{i}", 3 + i, max_tokens=4 + i, **way))
        found.append(serve(engine)[:2])
        engine.close()
    assert found[0] == found[1]


def test_neighbours_do_not_change_an_answer(start_engine):
    engine = start_engine(dtype="float32")
    engine.add(request("alone", 70))
    alone = serve(engine)[0]["alone"]
    for i in range(12):
        engine.add(request(f"n{i}", 4 + 9 * i, temperature=0.9, seed=i))
    engine.add(request("alone", 70))
    assert serve(engine)[0]["alone"] == alone


def test_answers_that_had_to_give_way_are_the_same(start_engine, few_pages):
    """Their tokens are computed again as a prompt: the same but for noise, and twice the same bit for bit.

    A greedy token may differ where the two best are as near as noise; what follows another token is another answer.
    """
    ways = (
        {},
        {"temperature": 0.8, "top_p": 0.9, "seed": 5},
        {},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
    )
    found = {}
    for pages in (None, 24):
        few_pages(pages)
        engine = start_engine(dtype="float32", max_num_batched_tokens=128)
        for turn in range(2):
            for i in range(20):
                engine.add(request(f"r{i}", 3 + 2 * i, max_tokens=120, logprobs=2, **ways[i % 4]))
            found[pages, turn] = serve(engine)[:2]
            engine.check()
        assert (engine.use.num_preemptions > 20) == (pages is not None)
        assert engine.late_events == () and engine.growth.arena_bytes == 0
        assert found[pages, 0] == found[pages, 1]
        engine.close()
    (wanted, wanted_logprobs), (tokens, logprobs) = found[None, 0], found[24, 0]
    same = {id: next((i for i in range(120) if tokens[id][i] != wanted[id][i]), 120) for id in wanted}
    for id, count in same.items():
        chosen = [[p.logprob for p in each[id][:count]] for each in (logprobs, wanted_logprobs)]
        assert chosen[0] == pytest.approx(chosen[1], abs=LOGPROB_TOLERANCE)
        if count < 120 and not ways[int(id[1:]) % 4]:
            best, second = wanted_logprobs[id][count].top_logprobs[:2]
            assert best - second < NEAR_TIE, f"{id} differs from token {count} on"
    assert sum(count == 120 for count in same.values()) >= 18


WAYS = (
    {},
    {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "seed": 1, "logprobs": 3},
    {"temperature": 0.8, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"logit_bias": {1: 2.0}, "bad_word_ids": ((2,), (3, 4)), "min_tokens": 2, "stop_token_ids": (3,)},
    {"temperature": 1.0, "allowed_token_ids": (1, 2, 5), "logprobs": 0},
    {"prompt_logprobs": 2},
)


@pytest.mark.parametrize("family", ["dense", "moe"])
def test_launching_waits_for_nothing(family, start_engine, monkeypatch):
    """Neither steps of prompts, nor of answers, nor of both, in every way to sample."""
    engine = start_engine(family, enable_prefix_caching=True)
    launch, kinds = engine._runner.launch, set()

    def watched(plan, **how):
        kinds.add((plan.num_decodes > 0, plan.num_decodes < len(plan.spans)))
        with no_waits():
            return launch(plan, **how)

    monkeypatch.setattr(engine._runner, "launch", watched)
    events = []
    for i in range(3 * len(WAYS)):
        engine.add(request(f"r{i}", 2 + 13 * i, **WAYS[i % len(WAYS)]))
        events += engine.step()
    while engine.has_work:
        events += engine.step()
    assert kinds == {(True, True), (True, False), (False, True)}
    assert [event.error for event in events if event.finish_reason is not None] == [None] * 3 * len(WAYS)


@pytest.mark.parametrize("family", ["dense", "moe"])
@pytest.mark.parametrize("eager", [False, True])
def test_a_step_reads_and_writes_what_is_its_own(family, eager, start_engine, monkeypatch):
    """Free memory holds NaN; that of others is the same, byte for byte, after every step, replayed or not."""
    engine = start_engine(family, enforce_eager=eager, kv_cache_memory_bytes="2MiB", max_num_seqs=6)

    def tokens():
        for i, length in enumerate((40, 17, 64, 1, 3)):
            engine.add(request(f"r{i}", length, max_tokens=6 + i))
        return serve(engine)[0]

    expected = tokens()
    fill_with_nan(engine)
    steps = watch_foreign_memory(engine, monkeypatch)
    assert tokens() == expected
    assert {decodes for decodes, spans in steps if decodes == spans} >= {3, 4, 5}


@triton.jit
def _unknown_kernel(x_ptr):
    tl.store(x_ptr, 1.0)


def miss() -> None:
    """A kernel that no warm-up knows: under --strict it is not compiled."""
    triton.jit(_unknown_kernel.fn)[(1,)](torch.zeros(1, device="cuda"))


def throw(error):
    raise error


@pytest.mark.parametrize(
    ("fail", "kind"),
    [
        (miss, LateEventError),
        (partial(throw, torch.OutOfMemoryError("made up")), StepError),
        (partial(throw, ValueError("boom")), StepError),
    ],
    ids=["a kernel that was never warmed", "out of memory", "an exception"],
)
def test_a_failure_in_a_mixed_step_ends_its_requests_alone(fail, kind, start_engine, monkeypatch):
    engine = start_engine(max_num_seqs=3)
    engine.add(request("before", 30))
    expected = serve(engine)[0]["before"]

    model, failed = engine._runner._model, []
    layer = model.layers[1]

    def failing(self, *args):
        if self is layer and not failed and args[1].num_decodes and args[1].prefill.num_sequences:
            failed.append(True)
            fail()
        return self.forward(*args)

    monkeypatch.setattr(DecoderLayer, "__call__", failing)
    engine.add(request("answering", 9))
    for _ in range(4):
        engine.step()
    engine.add(request("prompt", 40))
    for _ in range(2):
        engine.step()
    for name in ("neighbour", "next"):
        engine.add(request(name, 30))
    tokens, _, ends = serve(engine)
    assert failed
    assert {name for name in ends if ends[name].error} <= {"answering", "prompt"}
    assert all(isinstance(ends[name].error, kind) for name in ends if ends[name].error)
    assert tokens["neighbour"] == tokens["next"] == expected
    engine.check()
    assert engine._scheduler.pages.num_used == engine._scheduler.slots.num_used == 0


def test_what_steps_need_is_held_again_after_there_was_no_memory(start_engine, monkeypatch):
    """torch's allocator gives all that it keeps back to the driver before it says so."""
    engine = start_engine(enforce_eager=True)
    engine.add(request("before", 30))
    expected, reserved, model = serve(engine)[0]["before"], engine.device.reserved_bytes(), engine._runner._model
    allocated = torch.cuda.memory_allocated()

    def starving(*_):
        rows = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
        return torch.empty(1 << 44, device="cuda"), rows

    monkeypatch.setattr(engine._runner, "_model", starving)
    engine.add(request("unlucky", 30))
    (event,) = engine.step()
    assert engine.num_running == 0 and engine.device.reserved_bytes() == reserved
    assert event.error is not None and torch.cuda.memory_allocated() < allocated + (1 << 19), "the error holds memory"
    monkeypatch.setattr(engine._runner, "_model", model)
    before = torch.cuda.memory_stats()["num_device_alloc"]
    engine.add(request("next", 30))
    assert serve(engine)[0]["next"] == expected and engine.late_events == ()
    assert torch.cuda.memory_stats()["num_device_alloc"] == before, "a step asked the driver for memory"


def test_a_lost_context_answers_everybody_and_ends_the_process(tmp_path, start_engine):
    start_engine()  # writes the configuration
    script = textwrap.dedent(f"""
        import torch
        from hotstart.config.engine import EngineConfig
        from hotstart.engine import startup
        from hotstart.errors import EngineDead
        from hotstart.request import Request, SamplingParams

        engine = startup.start(EngineConfig(
            model={str(tmp_path / "dense")!r}, load_format="dummy", device="cuda", dtype="bfloat16",
            max_model_len=64, max_num_seqs=2, max_num_batched_tokens=64, kv_cache_memory_bytes="8MiB",
        ))
        for i in range(4):
            engine.add(Request(f"r{{i}}", (1, 2, 3), SamplingParams(max_tokens=9), 0.0))
        engine.step()
        table = torch.zeros(3, device="cuda")
        table[torch.tensor([7], device="cuda")]  # a fault on the device
        events = []
        while engine.has_work:
            events += engine.step()
        assert sorted(event.request_id for event in events if event.error) == ["r0", "r1", "r2", "r3"]
        assert all(isinstance(event.error, EngineDead) for event in events if event.error)
        print("all answered", flush=True)
        engine.step()
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "all answered" in done.stdout and "EngineDead" in done.stderr, done.stderr[-2000:]


def test_the_driver_tells_what_this_process_holds():
    device = CudaDevice("triton")
    before = device.resident_bytes()
    held = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    if device.tells_processes_apart:
        assert 256 << 20 <= device.resident_bytes() - before <= 300 << 20
        assert device.resident_bytes() <= device.used_bytes() + device.reserved_bytes()
    assert held.numel()


def test_a_peak_counts_what_lay_free_between_tensors_that_stay():
    device, mib = CudaDevice("triton"), 1 << 20
    torch.cuda.empty_cache()
    room = torch.empty(96 * mib, dtype=torch.uint8, device="cuda")
    del room
    stays = torch.empty(20 * mib, dtype=torch.uint8, device="cuda")
    with device.measure_peak() as peak:
        torch.empty(64 * mib, dtype=torch.uint8, device="cuda")
    assert peak.num_bytes >= 64 * mib + SMALL_BYTES
    assert stays.numel()
