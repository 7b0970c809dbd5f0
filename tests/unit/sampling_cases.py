"""Rows of sampling settings, and the comparison of two samplers."""

import torch

from hotstart.kernels.edits import Edits
from hotstart.kernels.sampling import SamplingRows, candidates, sample_torch, uniform

__all__ = ["HISTORY", "disagreements", "make_edits", "make_rows"]

HISTORY = torch.zeros(1, 4, dtype=torch.int32)  # nobody's tokens


def make_rows(rows):
    """rows: one dict each, of temperature, top_k, top_p, min_p, seed, position, banned."""
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0, "position": 0, "banned": ()}
    full = [plain | r for r in rows]

    def column(name, dtype):
        return torch.tensor([r[name] for r in full], dtype=dtype)

    return SamplingRows(
        temperature=column("temperature", torch.float32),
        top_k=column("top_k", torch.int64),
        top_p=column("top_p", torch.float32),
        min_p=column("min_p", torch.float32),
        seed=column("seed", torch.int64),
        position=column("position", torch.int64),
        all_greedy=all(r["temperature"] == 0 for r in full),
        candidates=max((candidates(r["top_k"], r["top_p"]) for r in full if r["temperature"]), default=0),
        any_min_p=any(r["min_p"] > 0 for r in full),
        grammar=None,
        edits=make_edits([{"row": i, "bans": r["banned"]} for i, r in enumerate(full) if r["banned"]]),
    )


def make_edits(rows, allowed=None):
    """rows: one dict each, of row, slot, prompt, length, repetition, presence, frequency, bias (a dict), bans."""
    table, penalties, ids, values = [], [], [], []
    for r in rows:
        bias, bans, first = r.get("bias", {}), r.get("bans", ()), len(ids)
        ids += [*bias, *bans]
        values += [*bias.values(), *(0.0 for _ in bans)]
        place = r["row"], r.get("slot", 0), r.get("prompt", 0), r.get("length", 0)
        table.append((*place, first, first + len(bias), len(ids), 0))
        penalties.append((r.get("repetition", 1.0), r.get("presence", 0.0), r.get("frequency", 0.0), 0.0))
    if not table:
        return None
    return Edits(
        table=torch.tensor(table, dtype=torch.int32),
        penalties=torch.tensor(penalties),
        ids=torch.tensor(ids, dtype=torch.int32),
        values=torch.tensor(values),
        allowed=allowed,
        host=tuple(table),
    )


def disagreements(logits, rows, tokens, slack=1e-5):
    """Rows whose token is not the torch form's, though its number is further than `slack` from a boundary.

    What is kept can differ by a token at the edge of top-p, so the boundaries are those of the kept tokens' sums.
    """
    wanted = sample_torch(logits, rows, HISTORY)
    found = []
    for i in (tokens != wanted).nonzero()[:, 0].tolist():
        probs = (logits[i].double() / rows.temperature[i]).softmax(-1)
        for row, _, _, _, _, ban, end, _ in rows.edits.host if rows.edits else ():
            if row == i:
                probs[rows.edits.ids[ban:end].long()] = 0
        probs[probs < rows.min_p[i].double() * probs.max() * (1 - 1e-6)] = 0
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
