"""Rows of sampling settings, and the comparison of two samplers."""

import torch

from hotstart.kernels.sampling import SamplingRows, candidates, sample_torch, uniform

__all__ = ["disagreements", "make_rows"]


def make_rows(rows):
    """rows: one dict each, of temperature, top_k, top_p, seed, position, banned."""
    full = [{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0, "position": 0, "banned": ()} | r for r in rows]

    def column(name, dtype):
        return torch.tensor([r[name] for r in full], dtype=dtype)

    banned = [(i, token) for i, r in enumerate(full) for token in r["banned"]]
    return SamplingRows(
        temperature=column("temperature", torch.float32),
        top_k=column("top_k", torch.int64),
        top_p=column("top_p", torch.float32),
        seed=column("seed", torch.int64),
        position=column("position", torch.int64),
        banned=torch.tensor(banned, dtype=torch.int64).view(-1, 2),
        all_greedy=all(r["temperature"] == 0 for r in full),
        candidates=max((candidates(r["top_k"], r["top_p"]) for r in full if r["temperature"]), default=0),
        num_banned=len(banned),
    )


def disagreements(logits, rows, tokens, slack=1e-5):
    """Rows whose token is not the torch form's, though its number is further than `slack` from a boundary.

    What is kept can differ by a token at the edge of top-p, so the boundaries are those of the kept tokens' sums.
    """
    wanted = sample_torch(logits, rows)
    found = []
    for i in (tokens != wanted).nonzero()[:, 0].tolist():
        probs = (logits[i].double() / rows.temperature[i]).softmax(-1)
        for row, token in rows.banned.tolist():
            probs[token] *= row != i
        order = probs.argsort(descending=True, stable=True)
        count = int(rows.top_k[i]) or len(order)
        ranked = probs[order[:count]] / probs[order[:count]].sum()
        before = ranked.cumsum(0) - ranked
        edge = ((before - rows.top_p[i].double()).abs() < slack).any()
        kept = order[:count][before < rows.top_p[i]]
        sums = torch.zeros_like(probs).scatter(0, kept, probs[kept]).cumsum(0)
        distance = (sums / sums[-1] - uniform(rows.seed[i : i + 1], rows.position[i : i + 1])).abs().min()
        if not edge and distance > slack:
            found.append((i, int(tokens[i]), int(wanted[i])))
    return found
