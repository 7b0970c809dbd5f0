"""Prefill by flash-linear-attention and by FlashInfer, and tuning, on a real GPU."""

from dataclasses import dataclass, replace

import pytest
import torch
import triton
import triton.language as tl
from steps import Row, make_step, moved
from test_gdn import expected, make_dims, make_inputs
from tolerances import relative_error

from bench.gdn_errors import CASES, errors
from hotstart.config.published import published_config
from hotstart.engine.check import Checker
from hotstart.kernels import gdn_external, tune
from hotstart.kernels.gdn_backends import choose_prefill, installed_packages, prove_prefill
from hotstart.kernels.launch import LAUNCHERS, Launcher, kernel
from hotstart.kernels.target import current_target
from hotstart.kernels.tile_tables import Table
from hotstart.kernels.tiles import TUNABLES, Trial, Tunable
from hotstart.kernels.warm_up import warm_up
from hotstart.kernels.watch import Watch

OPS = {"fla": gdn_external.gdn_prefill_fla, "flashinfer": gdn_external.gdn_prefill_flashinfer}
ROWS = [
    Row(1, write=1),
    Row(63, start=6, read=2, write=2),
    Row(64, write=3),
    Row(65, start=3, read=4, write=0),
    Row(130, write=5),
]


@pytest.fixture(params=OPS)
def library(request):
    """The name of a library that is installed, and has a kernel for this GPU."""
    name, package = request.param, {"fla": "fla", "flashinfer": "flashinfer"}[request.param]
    pytest.importorskip(package, reason=f"{name} is not installed: pip install 'hotstart[{name}]'")
    if name == "flashinfer" and torch.cuda.get_device_capability()[0] not in (9, 10, 12):
        pytest.skip("FlashInfer's prefill has no kernel for this GPU")
    return name


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("heads", [(16, 32), (16, 48), (16, 16)], ids=str)
def test_prefill_matches_token_by_token(library, heads):
    dims = make_dims(*heads, K=128, V=128)
    step = make_step([Row(1, read=6, write=6)], ROWS, padding=2)
    packed, weights, conv, state = make_inputs(dims, step.num_tokens + 2, 8, torch.bfloat16)
    for row in ROWS:
        if row.read < 0:  # what a slot held before must not show
            conv[row.write], state[row.write] = float("nan"), float("nan")
    wanted = expected(packed, weights, conv, state, step, dims)
    on_gpu = [moved(x, "cuda") for x in (packed, weights, conv, state)]
    out = torch.full((packed.shape[0], heads[1] * 128), float("nan"), device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        OPS[library](*on_gpu, moved(step.prefill, "cuda"), dims, out)
    out, conv_after, state_after = out.cpu(), on_gpu[2].cpu(), on_gpu[3].cpu()
    first, last, written = 1, step.num_tokens, [row.write for row in ROWS]
    assert relative_error(out[first:last], wanted[0][first:last]) < 1e-2
    assert relative_error(state_after[written], wanted[2][written]) < 5e-3
    assert torch.equal(conv_after[written].double(), wanted[1][written])
    assert torch.equal(conv_after[6:], conv[6:]) and torch.equal(state_after[6:], state[6:])
    assert out[:first].isnan().all() and out[last:].isnan().all()


@pytest.mark.filterwarnings("ignore")
def test_after_the_warm_up_no_length_or_number_is_late(library):
    checker = Checker(published_config("qwen3.5-4b"))
    space = replace(checker.space(), gdn_prefill=library)
    with Watch("error") as watch, torch.inference_mode():
        installed = installed_packages()
        choice = choose_prefill(library, current_target(), space.gdn, torch.bfloat16, installed, Table(""))
        assert prove_prefill(choice, space) == choice
        warm_up(space)
        watch.seal()
        cuda = torch.device("cuda")
        on = replace(space, num_tokens=4096, num_slots=64).on(cuda)
        packed, weights, conv, state = on.gdn_inputs(space.gdn, torch.bfloat16)
        out = on.tokens(space.gdn.num_value_heads * space.gdn.value_dim, torch.bfloat16)
        for lengths in ((2,), (3,), (16,), (17,), (64,), (65, 2), (1000,), (4096,), (2,) * 17, (64,) * 64):
            prefill = space.prompts(cuda, lengths).prefill
            OPS[library](packed, weights, conv, state, prefill, space.gdn, out)
            watch.check()
        torch.cuda.synchronize()
    assert watch.events == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_our_errors_are_within_a_fifth_of_flash_linear_attentions(case):
    fla = pytest.importorskip("fla.ops.gated_delta_rule", reason="fla is not installed: pip install 'hotstart[fla]'")
    row = errors(case, fla.chunk_gated_delta_rule)
    for ours, theirs in zip(row["ours"], row["peer"], strict=True):
        assert ours <= 1.2 * theirs


@dataclass(frozen=True)
class Family:
    width: int


@dataclass(frozen=True)
class Tiles:
    block: int


@kernel
def _add_one_kernel(x_ptr, y_ptr, total: tl.int32, N: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    mask = offsets < total
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets, mask, 0) + 1, mask)


def test_tuning_times_real_launches_within_its_bounds_and_remembers(monkeypatch, tmp_path):
    monkeypatch.setenv("HOTSTART_CACHE", str(tmp_path))
    launchers, tunables = list(LAUNCHERS), list(TUNABLES)
    TUNABLES.clear()
    launch = Launcher(_add_one_kernel, warmup=lambda space: None)

    def trial(space, family, lengths):
        x, y = (space.empty(sum(lengths), 4096, dtype=torch.float32) for _ in range(2))

        def call():
            block = tunable(family).block
            launch((triton.cdiv(x.numel(), block),), x, y, x.numel(), N=block)

        return Trial(call, (x, y))

    tunable = Tunable(
        "add_one",
        (launch,),
        families=lambda space: (Family(4096),),
        candidates=lambda target, family: (Tiles(32), Tiles(1024), Tiles(4096)),
        trial=trial,
    )
    try:
        space = Checker(published_config("qwen3.5-0.8b")).space()
        before = torch.cuda.memory_allocated()
        report = tune.resolve(space, command="pytest")
        (choice,) = report.choices
        assert choice.tiles != Tiles(32) and choice.entry.gain > 1.02  # a warp that copies one line is slow anywhere
        assert report.seconds < 60 and report.scratch_bytes <= tune.SCRATCH_BYTES
        assert torch.cuda.memory_allocated() == before
        assert tune.resolve(space).choices[0].origin == "cached"
    finally:
        LAUNCHERS[:], TUNABLES[:] = launchers, tunables
