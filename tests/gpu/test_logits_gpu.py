"""Logits of every family on the GPU against the CPU's in float32: prompts of many lengths, then decode steps."""

import logging

import pytest
import torch
from families import FAMILIES, VOCAB, make_checkpoint
from stepper import Stepper, load_model
from tolerances import relative_error

from hotstart.engine.cuda import CudaDevice
from hotstart.kernels import linear
from hotstart.kernels.backends import ops_for

LENGTHS = [1, 2, 3, 63, 64, 65, 200]
DECODE_STEPS = 8
FLOAT32_LIMIT = 2e-4  # largest difference of any logit, where logits spread by 2.5
BFLOAT16_LIMIT = 0.06  # relative, over all positions


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    made = {}

    def get(name):
        if name not in made:
            family = next(family for family in FAMILIES if family.name == name)
            made[name] = make_checkpoint(family, tmp_path_factory.mktemp(name))
        return made[name]

    return get


def run(stepper, answers, *, ends_alone=False):
    """Logits of every position, or from the prompt's last one on; the tokens decoded are given, so that one flip does
    not end the comparison."""
    with torch.inference_mode():
        lengths = [len(tokens) for tokens in stepper.tokens]
        logits = [[part.float().cpu()] for part in stepper.step(lengths, ends_alone=ends_alone)]
        for step in range(DECODE_STEPS):
            for tokens, given in zip(stepper.tokens, answers, strict=True):
                tokens.append(given[step])
            for seen, part in zip(logits, stepper.step([1] * len(logits)), strict=True):
                seen.append(part.float().cpu())
    return [torch.cat(seen) for seen in logits]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_logits_match_the_cpu(family, backend, checkpoint, monkeypatch):
    draw = torch.Generator().manual_seed(7)
    prompts = [torch.randint(VOCAB, (length,), generator=draw).tolist() for length in LENGTHS]
    answers = [torch.randint(VOCAB, (DECODE_STEPS,), generator=draw).tolist() for _ in LENGTHS]
    folder = checkpoint(family)
    expected = run(Stepper(load_model(folder, torch.float32), prompts), answers)

    device = CudaDevice(backend)

    def allocate(shape, dtype):
        return torch.full(shape, float("nan"), dtype=dtype, device=device.torch_device)

    ops = ops_for(backend)
    monkeypatch.setattr(linear, "_HAS_ONEDNN", False)  # the CPU is done
    last = [part[-1 - DECODE_STEPS :] for part in expected]
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(folder, dtype, ops=ops, allocate=allocate)
        for ends_alone, wanted, some in (
            (False, expected, slice(None)),
            (True, last, slice(None)),
            (False, expected, slice(-1, None)),  # of one row and of two, products are others
            (True, last, slice(2)),
        ):
            stepper = Stepper(model, prompts[some], device, allocate)
            found, wanted = run(stepper, answers[some], ends_alone=ends_alone), wanted[some]
            if dtype == torch.float32:
                worst = max((a - b).abs().max().item() for a, b in zip(found, wanted, strict=True))
                assert worst < FLOAT32_LIMIT, f"float32 logits differ by {worst:.2g}"
            else:
                error = relative_error(torch.cat(found), torch.cat(wanted))
                assert error < BFLOAT16_LIMIT, f"bfloat16 logits are off by {error:.2g}"
