"""Edits, masks and records on a GPU: the formulas, and nothing waits for the device."""

import torch
from sampling_cases import make_edits
from steps import moved
from test_edits import check, edited, make_masks, random_case
from waits import no_waits

from hotstart.kernels import edits


def on_gpu(logits, wishes, history):
    return edits.edit(logits.cuda(), moved(wishes, "cuda"), history.cuda()).cpu()


def test_edits_are_their_formulas():
    for seed in range(30):
        check(on_gpu, seed)


def test_a_token_that_came_often_is_counted_every_time():
    """More tokens than a program has threads, most of them the same."""
    logits = torch.randn(2, 150, generator=torch.Generator().manual_seed(0))
    tokens = [7 if i % 3 else i % 150 for i in range(20_000)]
    history = torch.tensor([tokens], dtype=torch.int32)
    row = {"row": 1, "slot": 0, "prompt": 100, "length": 20_000, "tokens": tokens, "repetition": 1.3, "presence": 1.0}
    row |= {"frequency": 2**-10, "bias": {7: 50.0}, "bans": (8,)}
    found = on_gpu(logits, make_edits([row]), history)
    torch.testing.assert_close(found.double(), edited(logits, [row], {}), rtol=1e-4, atol=1e-3)


def test_nothing_waits_for_the_device():
    logits, rows, history, _ = random_case(3)
    masks = moved(make_masks({0: [1, 2], 3: [149]}), "cuda")
    wishes, logits, history = moved(make_edits(rows, masks), "cuda"), logits.cuda(), history.cuda()
    spans = ((2, 3, 1, 34), (0, 39, 0, 1))
    records = edits.Records(torch.tensor(spans, dtype=torch.int32, device="cuda"), spans)
    tokens = torch.arange(50, dtype=torch.int32, device="cuda")

    def run():
        edits.record(history, tokens, records)
        edits.mask(logits, masks)
        return edits.edit(logits, wishes, history)

    run()
    torch.cuda.synchronize()
    with no_waits():
        run()
    assert history[2, 3:37].tolist() == list(range(1, 35)) and history[0, 39] == 0
