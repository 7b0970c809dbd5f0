"""Which rounding makes which error of the chunked rule: float64 but for one operand, or all, as the kernels round them.

    python -m bench.gdn_roundings [--out FILE.json]

On a CPU, on the inputs of bench/gdn_errors.py; letters are those of kernels/gdn_prep.py and gdn_scan.py.  A is what is
inverted, T its inverse with beta, QK the masked q k^T; X and Z are what is stored for a chunk, R its residuals, S the
state as an operand, O the outputs.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bench.gdn_errors import CASES, inputs, relative, rule_in_float64

C = 64
ORDER = ("A", "T", "QK", "X", "Z", "R", "S", "O")
Round = Callable[[Tensor], Tensor]


def _half(x: Tensor) -> Tensor:
    return x.half().double()


def _bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().double()


def _two(x: Tensor) -> Tensor:
    return _bfloat16(x) + _bfloat16(x - _bfloat16(x))


BEFORE: dict[str, Round] = {"A": _half, **dict.fromkeys(ORDER[1:], _bfloat16)}
FORMS: dict[str, dict[str, Round]] = {
    **{f"{name} alone": {name: BEFORE[name]} for name in ORDER},
    "all": BEFORE,
    "all, T in two summands": BEFORE | {"T": _two},
    "all, T and R in two summands": BEFORE | {"T": _two, "R": _two},
}


def rounded(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, form: Mapping[str, Round]
) -> tuple[Tensor, Tensor]:
    """The chunked rule; q and k come as they are, and their norms are factors of finished products."""

    def operand(name: str, x: Tensor) -> Tensor:
        return form[name](x) if name in form else x

    repeats = v.shape[1] // k.shape[1]
    q, k, v, g, beta, state = (x.double() for x in (q, k, v, g, beta, state))
    q, k = (x.repeat_interleave(repeats, 1) for x in (q, k))
    q_norm, k_norm = ((x.square().sum(-1) + 1e-6).rsqrt() for x in (q, k))
    q_norm = q_norm * k.shape[-1] ** -0.5
    outputs = []
    for chunk in zip(*(x.split(C) for x in (q, k, v, g, beta, q_norm, k_norm)), strict=True):
        q_c, k_c, v_c, g_c, b_c, qn, kn = (x.movedim(0, 1) for x in chunk)  # heads first
        G = g_c.cumsum(1)
        A = (k_c @ k_c.mT * (b_c * kn)[..., None] * kn[:, None]).tril(-1)
        T = torch.linalg.inv(torch.eye(len(A[0]), dtype=A.dtype) + operand("A", A))
        T = operand("T", T * kn[..., None] * b_c[:, None])
        gates = (G[..., None] - G[:, None]).exp().tril()
        X = operand("X", operand("QK", (q_c @ k_c.mT).tril()) @ T * gates * qn[..., None])
        Z = operand("Z", T.mT @ k_c * (G[:, -1:] - G).exp()[..., None])
        S = operand("S", state)
        R = operand("R", v_c - k_c @ S.mT * (G.exp() * kn)[..., None])
        outputs.append(operand("O", q_c @ S.mT * (G.exp() * qn)[..., None] + X @ R).movedim(0, 1))
        state = state * G[:, -1].exp()[:, None, None] + R.mT @ Z
    return torch.cat(outputs), state


def errors(case: str, seed: int = 0) -> dict[str, list[float]]:
    torch.manual_seed(seed)
    given = inputs(case)
    wanted = rule_in_float64(*given)
    return {
        name: [relative(found, right) for found, right in zip(rounded(*given, form), wanted, strict=True)]
        for name, form in FORMS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record = {"command": "python -m bench.gdn_roundings", "rows": {case: errors(case) for case in CASES}}
    for name in FORMS:
        print(f"{name:<30}" + "   ".join("{:.2e} {:.2e}".format(*record["rows"][case][name]) for case in CASES))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
