"""From logits to tokens and log-probabilities, on the device, for R rows at once.

A row's token is the inverse of its cumulative distribution (over the kept tokens, in the order of ids) at a uniform
number that a 64-bit mix makes of the row's seed and position: no generator state, and no neighbour, can change it.
The mix is the finaliser of SplitMix64, Steele, Lea & Flood 2014, doi:10.1145/2714064.2660195.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hotstart.kernels.edits import Edits, Masks, edit_torch, mask_torch

__all__ = ["SamplingRows", "TokenLogprobs", "candidates", "sample_torch", "token_logprobs", "uniform"]

ALL_TOKENS = 1 << 30  # more than any vocabulary
FEW = 1024  # tokens that hold nearly always what top-p keeps

_GAMMA = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed integer
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """How each of R rows is sampled, with host facts about all of them.

    A temperature of 0 is greedy; top_k 0 means all tokens.  A grammar's masks change the logits themselves, so that
    log-probabilities are of what is left; edits are made in a copy.
    """

    temperature: Tensor  # [R] float32
    top_k: Tensor  # [R] int64
    top_p: Tensor  # [R] float32
    seed: Tensor  # [R] int64
    position: Tensor  # [R] int64: number of tokens before the one sampled
    min_p: Tensor  # [R] float32
    all_greedy: bool  # host
    candidates: int  # host: that many likeliest tokens decide what every row keeps (see `candidates`), 0: no row is cut
    any_min_p: bool  # host
    grammar: Masks | None
    edits: Edits | None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of R given tokens, their ranks (1 is likeliest), and the n likeliest tokens of each row."""

    logprob: Tensor  # [R] float32
    rank: Tensor  # [R] int64
    top_ids: Tensor  # [R, n] int64
    top_logprobs: Tensor  # [R, n] float32


def _mix(x: Tensor) -> Tensor:
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        x = (x ^ _shift_right(x, shift)) * factor
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical, where torch's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniform(seed: Tensor, position: Tensor) -> Tensor:
    """A number in [0, 1) for each (seed, position), [R] float64."""
    mixed = _mix(_mix(seed + _GAMMA) + (position + 1) * _GAMMA)
    # 52 bits: the product with any total then rounds to less than that total.
    return _shift_right(mixed, 12).double() * 2.0**-52


def sample_torch(logits: Tensor, rows: SamplingRows, history: Tensor) -> Tensor:
    """One token id for each row, [R] int64.  logits: [R, vocab], masked in place; history: see edits.py."""
    if rows.grammar is not None:
        mask_torch(logits, rows.grammar)
    if rows.edits is not None:
        logits = edit_torch(logits, rows.edits, history)
    greedy = logits.argmax(-1)
    if rows.all_greedy:
        return greedy
    hot = rows.temperature > 0
    scaled = logits.float() / torch.where(hot, rows.temperature, 1.0)[:, None]
    probs = scaled.softmax(-1)
    if rows.any_min_p:
        probs = probs * (probs >= rows.min_p[:, None] * probs.amax(-1, keepdim=True))
    if rows.candidates:
        probs = probs * _kept(probs, rows.top_k, rows.top_p, rows.candidates)
    total = probs.cumsum(-1, dtype=torch.float64)
    target = uniform(rows.seed, rows.position)[:, None] * total[:, -1:]
    # Rows that hold NaN find no place; their token must be one all the same, or it would fault as an index.
    drawn = torch.searchsorted(total, target, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)
    return torch.where(hot, drawn, greedy)


def candidates(top_k: int, top_p: float) -> int:
    """Of a row that is not greedy: how many of the likeliest tokens must be looked at to know what it keeps."""
    return top_k or (ALL_TOKENS if top_p < 1.0 else 0)


# Which tokens top-k, then top-p, leave [R, vocab] bool; among equals the lower id comes first.  How many tokens top-p
# must look at is data, so this is an operator of its own, and a CPU may look before it sorts a whole vocabulary.
_library = torch.library.Library("hotstart", "FRAGMENT")
_library.define("kept(Tensor probs, Tensor top_k, Tensor top_p, int candidates) -> Tensor")
_kept = torch.ops.hotstart.kept  # (probs [R, vocab], top_k [R], top_p [R], candidates)


def _kept_cpu(probs: Tensor, top_k: Tensor, top_p: Tensor, candidates: int) -> Tensor:
    if candidates == ALL_TOKENS:
        kept, enough = _kept_among(FEW, probs, top_k, top_p)
        if enough.all():
            return kept
    return _kept_device(probs, top_k, top_p, candidates)


def _kept_device(probs: Tensor, top_k: Tensor, top_p: Tensor, candidates: int) -> Tensor:
    return _kept_among(candidates, probs, top_k, top_p)[0]


def _kept_meta(probs: Tensor, top_k: Tensor, top_p: Tensor, candidates: int) -> Tensor:
    return torch.empty_like(probs, dtype=torch.bool)


_library.impl("kept", _kept_cpu, "CPU")
_library.impl("kept", _kept_device, "CUDA")
_library.impl("kept", _kept_meta, "Meta")


def _kept_among(count: int, probs: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Those kept among the `count` likeliest tokens [R, vocab], and for which rows no other could be kept [R]."""
    vocab = probs.shape[-1]
    # Bits of a positive float are ordered as it is; with the id below them no two keys are equal.
    ids = torch.arange(vocab - 1, -1, -1, device=probs.device)
    keys = torch.add(ids, probs.view(torch.int32), alpha=1 << 32)
    # In few sizes, so that few shapes ever run.
    count = max(32, 1 << (count - 1).bit_length())
    keys = keys.topk(count).values if 4 * count <= vocab else keys.sort(descending=True).values
    order = vocab - 1 - (keys & 0xFFFFFFFF)
    count = order.shape[-1]
    place = torch.arange(count, device=probs.device)
    in_top_k = place < torch.where(top_k > 0, top_k, ALL_TOKENS)[:, None]
    ranked = (probs.gather(-1, order) * in_top_k).double()
    through = ranked.cumsum(-1)
    mass = torch.where(top_k > 0, through[:, -1], probs.sum(-1, dtype=torch.float64)) * top_p
    kept = in_top_k & (through - ranked < mass[:, None])
    uncut = (top_k <= 0) & (top_p >= 1.0)
    enough = uncut | torch.where(top_k > 0, top_k <= count, through[:, -1] >= mass)
    return uncut[:, None].expand_as(probs).scatter(-1, order, kept | uncut[:, None]), enough


def token_logprobs(logits: Tensor, token_ids: Tensor, top_n: int) -> TokenLogprobs:
    """Of the raw logits [R, vocab]: before edits, temperature and cuts.  token_ids: [R]."""
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(-1, token_ids.long()[:, None])
    # A sum of booleans is taken of a copy in 8 bytes each; of float16 it needs none, and float32 counts any vocabulary.
    above = torch.gt(logprobs, chosen, out=torch.empty_like(logprobs, dtype=torch.float16))
    rank = above.sum(-1, dtype=torch.float32).long() + 1
    top_logprobs, top_ids = logprobs.topk(top_n, dim=-1)
    return TokenLogprobs(chosen.squeeze(-1), rank, top_ids, top_logprobs)
