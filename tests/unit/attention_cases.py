"""Steps of gated attention over pages, and what they must give, written out in float64.  All other memory is poison."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from steps import Row, make_step, moved
from tolerances import assert_close

from hotstart.kernels.attention import attention_reference
from hotstart.kernels.rotary import rope_table

__all__ = ["Case", "assert_matches", "make_case", "run"]

THETA = 1e4


@dataclass(frozen=True)
class Case:
    inputs: tuple  # packed, q_norm, k_norm, rope, keys, values, step, dims
    out: torch.Tensor  # [T, H * D] float64, zero in rows of padding
    keys: torch.Tensor  # [pages * page_size, Hkv, D] float64
    values: torch.Tensor
    seen: torch.Tensor  # [pages * page_size]: what the sequences hold; the rest is NaN


def make_case(decodes, prefills, dims, dtype=torch.float32, padding=2, page_size=16, num_pages=100, seed=0):
    """decodes, prefills: (length, tokens before) of each sequence, with pages drawn at random."""
    r = torch.Generator().manual_seed(seed)
    free = torch.randperm(num_pages, generator=r).tolist()

    def row(length, start):
        pages = tuple(free.pop() for _ in range(-(-(start + length) // page_size)))
        return Row(length, start=start, pages=pages)

    step = make_step([row(*s) for s in decodes], [row(*s) for s in prefills], page_size=page_size, padding=padding)
    H, Hkv, D, n = dims.num_heads, dims.num_kv_heads, dims.head_dim, step.num_tokens
    packed = torch.randn(step.token_ids.shape[0], dims.packed_width + 64, generator=r).to(dtype)
    packed[n:] = float("nan")
    q_norm, k_norm = torch.randn(2, D, generator=r).to(dtype)
    keys, values = torch.randn(2, num_pages, page_size, Hkv, D, generator=r).to(dtype)
    num_positions = max([1, *(start + length for length, start in [*decodes, *prefills])])
    rope = rope_table(num_positions, dims.rotary_dim, THETA, None, torch.device("cpu"))

    table = rope.double()[step.positions[:n].long()]
    q, k, v, gates = _prepared(packed[:n].double(), q_norm, k_norm, table, dims)
    after = [cache.double().view(-1, Hkv, D).clone() for cache in (keys, values)]
    for cache, new in zip(after, (k, v), strict=True):
        cache[step.kv_index[:n]] = new
    seen = torch.zeros(num_pages * page_size, dtype=torch.bool)
    out = torch.zeros(packed.shape[0], H * D, dtype=torch.float64)
    tables = [*step.decode.page_table[: step.decode.num_sequences], *step.prefill.page_table]
    lengths = [1] * step.decode.num_sequences + list(step.prefill.lengths)
    first = 0
    for table, length, context in zip(tables, lengths, [*step.decode.contexts, *step.prefill.contexts], strict=True):
        places = [int(table[p // page_size]) * page_size + p % page_size for p in range(context)]
        seen[places] = True
        part = attention_reference(q[first : first + length], after[0][places], after[1][places])
        out[first : first + length] = part.reshape(length, H * D)
        first += length
    for cache, wanted in zip((keys, values), after, strict=True):
        cache.view(-1, Hkv, D)[~seen] = float("nan")
        wanted[~seen] = float("nan")
    out[:n] *= gates.sigmoid()
    return Case((packed, q_norm, k_norm, rope, keys, values, step, dims), out, *after, seen)


def _prepared(packed, q_norm, k_norm, table, dims):
    H, Hkv, D, n = dims.num_heads, dims.num_kv_heads, dims.head_dim, packed.shape[0]
    heads = packed[:, : 2 * H * D].view(n, H, 2 * D)
    k, v = (packed[:, (2 * H + i * Hkv) * D : (2 * H + (i + 1) * Hkv) * D].reshape(n, Hkv, D) for i in (0, 1))
    q = _rotate(F.rms_norm(heads[..., :D], (D,), 1 + q_norm.double(), dims.eps), table)
    k = _rotate(F.rms_norm(k, (D,), 1 + k_norm.double(), dims.eps), table)
    return q, k, v, heads[..., D:].reshape(n, H * D)


def _rotate(x, table):
    """Pair by pair, in float64, by the cosines and sines that the op is given: their rounding is not the op's."""
    half, y = table.shape[1] // 2, x.clone()
    for m in range(half):
        cos, sin = table[:, m, None], table[:, half + m, None]
        y[..., m] = x[..., m] * cos - x[..., half + m] * sin
        y[..., half + m] = x[..., half + m] * cos + x[..., m] * sin
    return y


def run(case, prepare, attend, device="cpu"):
    """out, keys and values after the step."""
    packed, q_norm, k_norm, rope, keys, values, step, dims = (moved(x, device) for x in case.inputs)
    if device == "cpu":
        keys, values = keys.clone(), values.clone()
    queries = prepare(packed, q_norm, k_norm, rope, keys, values, step, dims)
    out = attend(queries, packed, keys, values, step, dims)
    Hkv, D = dims.num_kv_heads, dims.head_dim
    return out.cpu(), keys.view(-1, Hkv, D).cpu(), values.view(-1, Hkv, D).cpu()


def assert_matches(case, results, factor=1.0):
    out, *caches = results
    n = case.inputs[6].num_tokens
    assert_close(out[:n], case.out[:n], factor)
    assert not out[n:].any()
    for cache, wanted in zip(caches, (case.keys, case.values), strict=True):
        assert_close(cache[case.seen], wanted[case.seen], factor)
        assert cache[~case.seen].isnan().all()
