"""Errors of the chunked rule on a GPU against the rule token by token in float64, beside flash-linear-attention's.

    python -m bench.gdn_errors [--out FILE.json] [--peer fla|none]

Both get the same inputs in bfloat16, gates and states in float32, and norm q and k themselves.  An error is the L2 norm
of the difference over that of what is right.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.device import facts
from bench.gdn_prefill import prompts
from hotstart.engine.sizes import GpuSizes
from hotstart.kernels.gdn import gated_delta_rule_reference
from hotstart.kernels.gdn_chunked import gated_delta_rule_chunked
from hotstart.kernels.ops import GdnDims

__all__ = ["CASES", "errors", "inputs", "relative", "rule_in_float64"]

DIMS = GdnDims(4, 8, 128, 128, conv_width=1, eps=0.0)
TOKENS = 512


def _decays(slowest: float, fastest: float) -> Tensor:
    rates = torch.linspace(slowest, fastest, DIMS.num_value_heads)
    return -rates * torch.rand(TOKENS, DIMS.num_value_heads)


def _models_decays() -> Tensor:
    """As the models have them: slow heads and fast ones."""
    HV = DIMS.num_value_heads
    bias = torch.linspace(-6, 0, HV)
    x = torch.randn(TOKENS, HV) + bias
    return -torch.linspace(0.01, 16, HV) * torch.nn.functional.softplus(x)


def _alike(cosine: float) -> Tensor:
    """Keys, any two of which have about this cosine."""
    one, others = (torch.nn.functional.normalize(_normal(n, DIMS.num_key_heads, 128), dim=-1) for n in (1, TOKENS))
    return cosine**0.5 * one + (1 - cosine) ** 0.5 * others


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape)


CASES = {
    "decays as models have them": lambda: (_normal(TOKENS, 4, 128), _models_decays()),
    "no decay at all": lambda: (_normal(TOKENS, 4, 128), _decays(0.0, 0.0)),
    "keys of cosine 0.9, slow decay": lambda: (_alike(0.9), _decays(0.02, 0.02)),
    "keys of cosine 0.99, slow decay": lambda: (_alike(0.99), _decays(0.02, 0.02)),
}


def rule_in_float64(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One sequence, token by token; q and k are normed here."""
    q, k, v, g, beta, state = (x.double() for x in (q, k, v, g, beta, state))
    q, k = (x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k))
    return gated_delta_rule_reference(q * k.shape[-1] ** -0.5, k, v, g, beta, state)


def relative(actual: Tensor, wanted: Tensor) -> float:
    return float((actual.double() - wanted).norm() / wanted.norm())


def inputs(case: str) -> tuple[Tensor, ...]:
    """q, k, v, g, beta and a state, on the default device."""
    HV, bfloat16 = DIMS.num_value_heads, torch.bfloat16
    k, g = CASES[case]()
    q, k, v = _normal(TOKENS, 4, 128).to(bfloat16), k.to(bfloat16), _normal(TOKENS, HV, 128).to(bfloat16)
    return q, k, v, g, torch.sigmoid(_normal(TOKENS, HV)), _normal(HV, 128, 128)


def errors(case: str, peer: Any, seed: int = 0) -> dict[str, Any]:
    """Of the outputs and of the state after the prompt; `peer` is flash-linear-attention's function, or None."""
    torch.manual_seed(seed)
    with torch.device("cuda"):
        q, k, v, g, beta, state = inputs(case)
    wanted = rule_in_float64(q, k, v, g, beta, state)
    step = prompts(1, TOKENS, GpuSizes.chunk_length, 0)
    out, pool = torch.empty_like(v), state[None].clone()
    gated_delta_rule_chunked(q, k, v, g, beta, pool, step, out)
    row: dict[str, Any] = {"case": case, "ours": [relative(out, wanted[0]), relative(pool[0], wanted[1])]}
    if peer is not None:
        theirs, after = peer(
            q[None], k[None], v[None], g=g[None], beta=beta[None], initial_state=state.mT[None].contiguous(),
            output_final_state=True, use_qk_l2norm_in_kernel=True,
        )  # fmt: skip
        row["peer"] = [relative(theirs[0], wanted[0]), relative(after[0].mT, wanted[1])]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=("fla", "none"), default="none")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    peer, versions = None, {}
    if options.peer == "fla":
        import fla
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule as peer

        versions["fla"] = fla.__version__
    record = facts(f"python -m bench.gdn_errors --peer {options.peer}") | versions
    record |= {"heads": [4, 8], "tokens": TOKENS, "rows": [errors(case, peer) for case in CASES]}
    for row in record["rows"]:
        cells = [f"{name} {row[name][0]:.2e} {row[name][1]:.2e}" for name in ("ours", "peer") if name in row]
        print(f"{row['case']:<36}" + "   ".join(cells))
    if options.out:
        options.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
