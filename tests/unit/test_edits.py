"""Penalties, biases, bans and masks against their formulas, token by token."""

import random
from collections import Counter

import torch
from sampling_cases import make_edits

from hotstart.engine.sequence import token_bits
from hotstart.kernels.edits import BANNED, Masks, Records, edit_torch, mask_torch, mask_words, record_torch

V, LENGTH = 150, 40


def random_case(seed, count=5):
    """Logits, the edits of some rows as dicts, the history, and the tokens that may come in some rows."""
    dice = random.Random(seed)
    logits = torch.randn(count, V, generator=torch.Generator().manual_seed(seed)) * 3
    history = torch.full((count + 2, LENGTH), -7, dtype=torch.int32)
    rows, allowed = [], {}
    for row in sorted(dice.sample(range(count), count - 1)):
        slot, length = (row * 3 + 1) % (count + 2), dice.choice((0, 1, 7, LENGTH))
        tokens = [dice.choice((0, V - 1, dice.randrange(9), dice.randrange(V))) for _ in range(length)]
        history[slot, :length] = torch.tensor(tokens, dtype=torch.int32)
        ids = dice.sample(range(V), dice.choice((0, 1, 20)))
        rows.append(
            {
                "row": row, "slot": slot, "prompt": dice.randint(0, length), "length": length, "tokens": tokens,
                "repetition": dice.choice((1.0, 0.5, 1.7)), "presence": dice.choice((0.0, -1.5, 2.0)),
                "frequency": dice.choice((0.0, 0.3)), "bias": {t: dice.uniform(-100, 100) for t in ids},
                "bans": tuple(dice.sample(range(V), dice.choice((0, 0, 3)))),
            }
        )  # fmt: skip
        if dice.random() < 0.5:
            allowed[row] = dice.sample(range(V), dice.choice((1, 60)))
    return logits, rows, history, allowed


def make_masks(allowed):
    if not allowed:
        return None
    lines = [token_bits(ids).ljust(4 * mask_words(V), b"\0") for ids in allowed.values()]
    bits = torch.stack([torch.frombuffer(bytearray(line), dtype=torch.int32) for line in lines])
    return Masks(torch.tensor([*allowed], dtype=torch.int32), bits, tuple(allowed))


def edited(logits, rows, allowed):
    """The formulas."""
    x = logits.double().clone()
    for r in rows:
        line, answer = x[r["row"]], Counter(r["tokens"][r["prompt"] :])
        for token in set(r["tokens"]):
            line[token] = line[token] / r["repetition"] if line[token] > 0 else line[token] * r["repetition"]
        for token, times in answer.items():
            line[token] -= r["presence"] + times * r["frequency"]
        for token, bias in r["bias"].items():
            line[token] += bias
        line[list(r["bans"])] = BANNED
    for row, ids in allowed.items():
        x[row][[t for t in range(V) if t not in ids]] = -torch.inf
    return x


def check(edit, seed):
    logits, rows, history, allowed = random_case(seed)
    before = logits.clone()
    found = edit(logits, make_edits(rows, make_masks(allowed)), history)
    torch.testing.assert_close(found.double(), edited(logits, rows, allowed), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits, before), "log-probabilities are of the raw logits"


def test_edits_are_their_formulas():
    for seed in range(30):
        check(edit_torch, seed)


def test_a_mask_leaves_only_what_is_allowed():
    logits = torch.randn(3, V)
    kept = logits.clone()
    mask_torch(logits, make_masks({0: [0, 31, 32, V - 1], 2: [5]}))
    assert torch.equal(logits[1], kept[1]) and logits[2].isfinite().nonzero().tolist() == [[5]]
    assert logits[0].isfinite().nonzero()[:, 0].tolist() == [0, 31, 32, V - 1] and logits[0, 31] == kept[0, 31]


def test_a_span_is_recorded_where_its_sequence_keeps_its_tokens():
    history = torch.zeros(3, 8, dtype=torch.int32)
    spans = ((2, 3, 1, 4), (0, 7, 0, 1))
    record_torch(history, torch.arange(10, 16, dtype=torch.int32), Records(torch.tensor(spans), spans))
    assert history.tolist() == [[0] * 7 + [10], [0] * 8, [0, 0, 0, 11, 12, 13, 14, 0]]
