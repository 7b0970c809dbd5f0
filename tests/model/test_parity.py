"""Logits against transformers: every family, every prompt position, and through 64 decode steps."""

import pytest
import torch
import transformers
from families import FAMILIES, VOCAB
from stepper import Stepper, load_model
from tolerances import FLOAT32_LOGITS, HALF_MEDIAN_RATIO, HALF_RATIO
from torch import Tensor

LENGTHS = [1, 2, 3, 63, 64, 65, 200]
DECODE_STEPS = 64
BFLOAT16_SAMPLES = 5  # of all lengths: 1990 positions
by_family = pytest.mark.parametrize("family", [family.name for family in FAMILIES])


def prompts(seed: int = 7) -> list[list[int]]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (length,), generator=random).tolist() for length in LENGTHS]


def reference(folder, dtype: torch.dtype, sequences: list[list[int]]) -> list[Tensor]:
    """transformers' logits at every position of every sequence."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return [model(torch.tensor([tokens])).logits[0].float() for tokens in sequences]


def generate(stepper: Stepper) -> list[Tensor]:
    """Prefill all prompts in one step, then decode greedily; the logits at every position computed."""
    logits = [[part] for part in stepper.step([len(tokens) for tokens in stepper.tokens])]
    for _ in range(DECODE_STEPS):
        for tokens, seen in zip(stepper.tokens, logits, strict=True):
            tokens.append(int(seen[-1][-1].argmax()))
        for seen, part in zip(logits, stepper.step([1] * len(logits)), strict=True):
            seen.append(part)
    return [torch.cat(seen) for seen in logits]


@by_family
def test_float32_logits_match_transformers(family, checkpoint):
    stepper = Stepper(load_model(checkpoint(family), torch.float32), prompts())
    ours = generate(stepper)
    theirs = reference(checkpoint(family), torch.float32, stepper.tokens)
    assert 2.0 < torch.cat(theirs).std() < 3.0
    for length, a, b in zip(LENGTHS, ours, theirs, strict=True):
        assert a.shape[0] == length + DECODE_STEPS
        assert (a - b).abs().max() < FLOAT32_LOGITS, f"prompt of {length} tokens"
        # What we decoded is what they would have: the same token is the likeliest at every step.
        assert torch.equal(a[length - 1 :].argmax(-1), b[length - 1 :].argmax(-1))


@by_family
def test_bfloat16_is_no_further_from_float32_than_transformers(family, checkpoint):
    """One rounding can send a token to another expert: it takes a few thousand positions to tell two engines apart."""
    folder, samples = checkpoint(family), [prompts(seed) for seed in range(BFLOAT16_SAMPLES)]
    tokens = [prompt for sample in samples for prompt in sample]
    exact = torch.cat(reference(folder, torch.float32, tokens))
    theirs = (torch.cat(reference(folder, torch.bfloat16, tokens)) - exact).square().mean(-1)
    model = load_model(folder, torch.bfloat16)
    mine = torch.cat([part for sample in samples for part in Stepper(model, sample).step(LENGTHS)])
    ours = (mine - exact).square().mean(-1)
    assert ours.mean().sqrt() < HALF_RATIO * theirs.mean().sqrt()
    assert ours.median().sqrt() < HALF_MEDIAN_RATIO * theirs.median().sqrt()


@by_family
def test_a_prompt_in_pieces_gives_the_same_logits(family, checkpoint):
    """Cut at chunk boundaries and elsewhere, mixed with decoding sequences, a sequence that rests in between."""
    model = load_model(checkpoint(family), torch.float32)
    tokens = [prompts()[i] for i in (5, 6, 3)]
    whole = Stepper(model, tokens).step([65, 200, 63])
    pieces = Stepper(model, tokens)
    parts = [pieces.step(lengths) for lengths in [[64, 128, 1], [0, 1, 2], [1, 71, 60]]]
    for i, expected in enumerate(whole):
        assert (torch.cat([part[i] for part in parts]) - expected).abs().max() < FLOAT32_LOGITS
