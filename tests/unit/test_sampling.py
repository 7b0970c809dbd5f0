"""Sampling: exact distributions, draws that no neighbour can change, ranks."""

import dataclasses

import torch
from sampling_cases import HISTORY, make_rows

from hotstart.engine.meter import StepMeter
from hotstart.kernels.sampling import ALL_TOKENS, sample_torch, token_logprobs, uniform


def test_draws_follow_the_exact_distribution():
    n = 20_000
    logits = torch.tensor([2.0, -1.0, 0.5, 0.5, 1.0, -3.0, 0.0])
    settings = [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.7},
        {"top_k": 4, "top_p": 0.8, "temperature": 2.0},
        {"min_p": 0.2},
        {"min_p": 0.1, "top_p": 0.9},
    ]
    for setting in settings:
        tokens = sample_torch(
            logits.expand(n, -1), make_rows([setting | {"seed": 7, "position": i} for i in range(n)]), HISTORY
        )
        probs = (logits.double() / setting.get("temperature", 1.0)).softmax(-1)
        probs[probs < setting.get("min_p", 0.0) * probs.max()] = 0
        order = probs.argsort(descending=True, stable=True)
        kept = order[: setting.get("top_k", 7)]
        ranked = probs[kept] / probs[kept].sum()
        kept = kept[((ranked.cumsum(0) - ranked) < setting.get("top_p", 1.0)) & (ranked > 0)]
        exact = torch.zeros_like(probs).scatter(0, kept, probs[kept] / probs[kept].sum())
        seen = torch.bincount(tokens, minlength=7) / n
        assert not seen[exact == 0].any(), setting
        spread = (exact * (1 - exact) / n).sqrt()
        assert ((seen - exact).abs() <= 4.5 * spread + 1e-9).all(), (setting, seen, exact)


def test_a_row_does_not_know_its_neighbours():
    r = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 97, generator=r)
    rows = [
        {"seed": 1, "position": 3},
        {"temperature": 0.0, "banned": (5, 6)},
        {"seed": -(2**63), "position": 1, "top_p": 0.9},
        {"seed": 2**63 - 1, "top_k": 5},
        {"seed": 1, "position": 4, "temperature": 0.3, "banned": (int(logits[4].argmax()),)},
        {"temperature": 0.0},
    ]
    together = sample_torch(logits, make_rows(rows), HISTORY)
    alone = torch.cat([sample_torch(logits[i : i + 1], make_rows(rows[i : i + 1]), HISTORY) for i in range(6)])
    assert torch.equal(together, alone)
    assert torch.equal(sample_torch(logits.flip(0), make_rows(rows[::-1]), HISTORY).flip(0), together)
    assert together[5] == logits[5].argmax() and together[4] != logits[4].argmax()


def test_uniform_is_uniform():
    numbers = torch.cat([uniform(torch.arange(1000), torch.tensor(p)) for p in range(50)])
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers.float(), 100, 0, 1)
    assert ((counts - 500).abs() < 5 * 500**0.5).all()
    by_seed = numbers.view(50, 1000)
    assert abs(torch.corrcoef(by_seed)[0, 1:].mean()) < 0.02 and abs(torch.corrcoef(by_seed.T)[0, 1:].mean()) < 0.05


def test_cuts_keep_ties_in_the_order_of_ids():
    logits = torch.zeros(1, 8).expand(500, -1)
    rows = [{"seed": i} for i in range(500)]
    assert set(sample_torch(logits, make_rows([r | {"top_k": 3} for r in rows]), HISTORY).tolist()) == {0, 1, 2}
    assert set(sample_torch(logits, make_rows([r | {"top_p": 0.25} for r in rows]), HISTORY).tolist()) == {0, 1}
    assert set(sample_torch(logits, make_rows([r | {"top_p": 1e-9} for r in rows]), HISTORY).tolist()) == {0}
    assert set(sample_torch(logits, make_rows([r | {"top_k": 100} for r in rows]), HISTORY).tolist()) == set(range(8))


def test_logprobs_are_of_the_raw_logits():
    logits = torch.tensor([[1.0, 3.0, 3.0, -2.0], [0.0, 1.0, 2.0, 3.0]])
    found = token_logprobs(logits, torch.tensor([2, 0]), 2)
    exact = logits.double().log_softmax(-1)
    torch.testing.assert_close(found.logprob.double(), exact[[0, 1], [2, 0]], rtol=1e-6, atol=1e-6)
    assert found.rank.tolist() == [1, 4] and found.top_ids[1].tolist() == [3, 2]
    torch.testing.assert_close(found.top_logprobs.double(), exact.topk(2).values, rtol=1e-6, atol=1e-6)
    assert token_logprobs(logits, torch.tensor([2, 0]), 0).top_ids.shape == (2, 0)


def test_looking_at_few_candidates_changes_nothing():
    """A neighbour with a wider cut makes the row look at more tokens; ties lie on the edge of every cut."""
    r = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (300, 700), generator=r).float()
    rows = [{"seed": i, "top_k": 1 + i % 30, "top_p": 0.5 + i % 6 / 10} for i in range(300)]
    few = make_rows(rows)
    for wider in (170, 10**6):
        many = dataclasses.replace(few, candidates=wider)
        assert torch.equal(sample_torch(logits, few, HISTORY), sample_torch(logits, many, HISTORY))


def test_top_p_of_a_large_vocabulary():
    """Peaked rows keep few tokens, flat rows most of them, and both get what a full sort gives them."""
    r = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 6000, generator=r) * torch.tensor([4.0, 0.1]).repeat(20)[:, None]
    for peaked, top_k in ((True, 0), (False, 0), (False, 3000)):
        some = logits[0::2] if peaked else logits
        rows = make_rows([{"seed": i, "top_p": 0.9, "top_k": top_k * (i % 2)} for i in range(len(some))])
        assert rows.candidates == ALL_TOKENS
        sorted_rows = dataclasses.replace(rows, candidates=10**6)
        assert torch.equal(sample_torch(some, rows, HISTORY), sample_torch(some, sorted_rows, HISTORY))


def test_extreme_logits_give_kept_tokens():
    logits = torch.full((1, 50), -1e30)
    logits[0, 7], logits[0, 9] = 1e30, -torch.inf
    for setting in ({}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.01}, {"temperature": 100.0, "top_k": 50}):
        tokens = torch.cat([sample_torch(logits, make_rows([setting | {"seed": i}]), HISTORY) for i in range(20)])
        assert tokens.eq(7).all(), setting


def test_the_meter_sees_what_a_sort_of_the_vocabulary_takes():
    """Start-up measures the dearest way to sample; it is inside an operator of our own."""
    logits = torch.zeros(4, 8192)
    peaks = []
    for top_k in (5, 0, 1 << 30):
        rows = make_rows([{"top_p": 0.9, "top_k": top_k}] * 4)
        with torch.inference_mode(), StepMeter() as meter:
            sample_torch(logits, rows, HISTORY)
        peaks.append(meter.peak_bytes)
    assert peaks[0] < peaks[1] <= peaks[2]
