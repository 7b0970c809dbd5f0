"""A prompt that goes on from cached pages and a snapshot of the state is answered as if it were computed whole."""

import dataclasses
import random

import torch
from tiny import VOCAB

from hotstart.engine import startup
from hotstart.engine.device import CpuDevice
from hotstart.request import Request, SamplingParams


def serve(engine, stem, tails):
    """Tokens and the cached length of each request; the third and the fourth run together."""
    events = []
    for seed, tail in enumerate(tails):
        params = SamplingParams(temperature=0.8, seed=seed, max_tokens=8, ignore_eos=True)
        engine.add(Request(f"r{seed}", stem + tail, params, 0.0))
        while engine.has_work and seed != 2:
            events += engine.step()
            engine.check()
    assert engine.late_events == () and engine.growth.arena_bytes == 0
    tokens = [[t for e in events if e.request_id == f"r{seed}" for t in e.token_ids] for seed in range(len(tails))]
    return tokens, [next(e.num_cached_tokens for e in events if e.request_id == f"r{s}") for s in range(len(tails))]


def test_cached_beginning_changes_no_answer(start_engine, seen_logits, monkeypatch):
    limits_of, logits = startup.scheduler_limits, seen_logits
    monkeypatch.setattr(CpuDevice, "flights", 2)
    dice = random.Random(5)
    chunk = CpuDevice.chunk_length
    stem = tuple(dice.choices(range(VOCAB), k=2 * chunk))
    tails = [tuple(dice.choices(range(VOCAB), k=k)) for k in (1, chunk + 3, 20, 30, 1)]
    found = {}
    for caching in (False, True):
        monkeypatch.setattr(
            startup,
            "scheduler_limits",
            lambda *args, caching=caching: dataclasses.replace(limits_of(*args), enable_prefix_caching=caching),
        )
        engine = start_engine(max_model_len=160, max_num_batched_tokens=100, max_num_seqs=4)
        logits.clear()
        tokens, cached = serve(engine, stem, tails)
        assert cached == [0, *(2 * chunk * caching for _ in tails[1:])]
        engine.close()
        found[caching] = tokens, dict(logits)
    assert found[True][0] == found[False][0]
    for key, wanted in found[False][1].items():
        torch.testing.assert_close(found[True][1][key], wanted, atol=1e-4, rtol=0)
