"""How the chunks of a step are walked in slabs, and where q and k lie meanwhile."""

import random
from bisect import bisect_left
from itertools import pairwise

import pytest
import torch

from hotstart.engine.limits import StepLimits
from hotstart.engine.rehearsal import worst_plans
from hotstart.engine.sizes import GpuSizes
from hotstart.kernels import gdn_chunked, gdn_workspace
from hotstart.kernels.gdn_slabs import slabs
from hotstart.kernels.gdn_workspace import columns, slab_limit
from hotstart.kernels.ops import GdnDims

DIMS = GdnDims(16, 32, 128, 128, conv_width=4, eps=1e-6)  # of Qwen3.5-4B
MIB = 1 << 20


def chunks_within(counts, begin, end):
    """Of each sequence that has any: its index, and how many."""
    found, start = {}, 0
    for i, count in enumerate(counts):
        inside = min(start + count, end) - max(start, begin)
        if inside > 0:
            found[i] = inside
        start += count
    return found


def test_slabs_hold_every_chunk_once_and_fit():
    r = random.Random(0)
    for _ in range(1000):
        lengths = tuple(r.choice([0, 1, 64, 65, 300, 1000, 5000]) for _ in range(r.randint(1, 12)))
        counts = [-(-length // 64) for length in lengths]
        if not sum(counts):
            continue
        most = r.choice([1, 2, 7, 30, 130])
        rows = sum(lengths) + r.choice([0, 0, 100])
        found, room, buffers, held = slabs(lengths, rows, 64, most, r.choice([1, 8, 32, 64]), 132)
        assert [slab.end for slab in found[:-1]] == [slab.begin for slab in found[1:]]
        assert (found[0].begin, found[-1].end) == (0, sum(counts))
        assert room == max(slab.end - slab.begin for slab in found)
        assert room * buffers <= held <= max(2, most)
        for slab in found:
            inside = chunks_within(counts, slab.begin, slab.end)
            assert slab.longest == max(inside.values())
            assert slab.first_sequence <= min(inside)
            assert slab.first_sequence + slab.num_sequences > max(inside)


@pytest.mark.parametrize(
    ("lengths", "z_apart", "num_slabs", "buffers", "at_most"),
    [
        ((64,), True, 1, 1, 6),
        ((8192,), True, 2, 2, 104),
        ((8192,), False, 2, 2, 40),
        ((32768,), True, 14, 2, 64),
        ((32768,), False, 5, 2, 64),
        ((1024,) * 8, True, 1, 1, 107),
        ((300,) * 60, True, 3, 1, 107),
    ],
    ids=str,
)
def test_the_workspace_of_a_step(lengths, z_apart, num_slabs, buffers, at_most):
    walk = slabs(lengths, sum(lengths), 64, slab_limit(DIMS, 64, 2, z_apart), 32, 132)
    assert (len(walk.slabs), walk.buffers) == (num_slabs, buffers)
    own = gdn_workspace.workspace(DIMS, 64, torch.bfloat16, walk.held, z_apart)
    programs = DIMS.num_value_heads * (1 if len(lengths) == 1 else walk.held)
    descriptors = gdn_chunked._DESCRIPTOR_BYTES * max(132, programs)
    assert sum(one.elements * one.dtype.itemsize for one in own.values()) + descriptors <= at_most * MIB


@pytest.mark.parametrize(("max_num_seqs", "max_model_len"), [(1, 9216), (2, 9216), (64, 9216), (64, 1000), (9, 950)])
def test_no_step_takes_more_than_the_worst_of_start_up(max_num_seqs, max_model_len):
    """Whatever its lengths: else memory would grow after the seal."""
    r, rungs, most = random.Random(1), GpuSizes().token_rungs(8192), slab_limit(DIMS, 64, 2)

    def taken(lengths):
        """Rows of the step, and chunks that memory is held for."""
        rows, prompts = rungs[bisect_left(rungs, sum(lengths))], tuple(n for n in lengths if n > 1)
        return rows, slabs(prompts, rows, 64, most, 32, 132).held if prompts else 0

    limits = StepLimits(max_num_seqs, 8192, max_model_len, 16, 64, 16, max_num_seqs, 1, 1000)
    worst = [taken([span.length for span in plan.spans]) for plan in worst_plans(8192, limits)]
    for _ in range(40):
        cuts = sorted(r.sample(range(1, 8192), r.randint(0, max_num_seqs - 1)))
        ends = pairwise([0, *cuts, r.randint(4096, 8192)])
        lengths = [min(end - start, max_model_len) for start, end in ends if end > start]
        for some in (
            lengths,
            [512] * min(16, max_num_seqs),
            [max_model_len] * min(max_num_seqs, 8192 // max_model_len),
        ):
            rows, held = taken(some or [1])
            assert any(rows <= most_rows and held <= most_held for most_rows, most_held in worst), some


@pytest.mark.parametrize(
    ("heads", "launches"),
    [
        ((16, 32), ((4096, 4096), (0, 4096))),
        ((16, 48), ((4096, 6144), (0, 4096))),
        ((16, 16), ((4096, 2048), (0, 2048), (2048, 2048))),
    ],
    ids=["v, then q and k", "more of v", "v, then q, then k"],
)
def test_what_a_launch_writes_no_later_one_reads(heads, launches):
    dims = GdnDims(*heads, 128, 128, conv_width=4, eps=1e-6)
    place = columns(dims, 10_000, 2)
    assert place.launches == launches and not place.apart
    qk, unit = dims.num_key_heads * dims.key_dim, gdn_workspace.unit_of(dims)
    free: set[int] = set()
    for first, count in place.launches:
        for channel in range(first, first + count, 128):
            if channel < 2 * qk:
                at = place.q_at * unit + channel if channel < qk else place.k_at * unit + channel - qk
                assert set(range(at, at + 128)) <= free
                free -= set(range(at, at + 128))
        free |= set(range(first, first + count))
    assert place.z_at is not None
    z_at = place.z_at * unit
    assert set(range(z_at, z_at + dims.num_value_heads * dims.key_dim)) <= free
    assert columns(dims, 64, 2).apart
