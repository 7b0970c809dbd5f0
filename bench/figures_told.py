"""Figures in sentences.  A `{}` stands for one, and what it is computed from stands beside the sentence.

`make figures` writes them where they are; a sentence that is not in its document exactly once is a mistake.
"""

import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from statistics import median

from bench.figures_gdn import Row
from bench.figures_gpu import MIB, RESULTS, read
from hotstart.kernels.tile_tables import read_table

__all__ = ["TOLD", "pattern", "told"]

Figures = Callable[[], Sequence[str]]
Sentence = tuple[str, Figures]
_FIGURE = r"(\d+(?:\.\d+)?)"


def pattern(sentence: str) -> str:
    return r"\s+".join(re.escape(word).replace(r"\{\}", _FIGURE) for word in sentence.split())


def told(document: str, sentences: Sequence[Sentence], name: str) -> str:
    """The document with the figures of these sentences as they are now, its lines cut as they were."""
    for sentence, figures in sentences:
        places = list(re.finditer(pattern(sentence), document))
        assert len(places) == 1, f"{name} has {len(places)} times: {sentence}"
        (place,), found = places, figures()
        assert len(found) == len(place.groups()), f"{len(found)} figures for: {sentence}"
        for group in range(len(found), 0, -1):
            document = document[: place.start(group)] + found[group - 1] + document[place.end(group) :]
    return document


def _rules(record: str = "gdn_prefill_h200") -> list[Row]:
    return [row for row in read(record)["rows"] if row["scope"] == "rule"]


def _times_as_long(row: Row, peer: str) -> float:
    return median(row["peers"][peer]["samples_us"]) / median(row["samples_us"])


def _is_long_and_alone(row: Row) -> bool:
    return bool(row["sequences"] == 1 and row["tokens"] >= 2048)


def faster_than_fla() -> list[str]:
    ratios = [(row, _times_as_long(row, "fla")) for row in _rules()]
    each = [ratio for _, ratio in ratios]
    alone = min(ratio for row, ratio in ratios if _is_long_and_alone(row))
    return [f"{value:.1f}" for value in (min(each), max(each), alone)]


def fla_in_an_earlier_call() -> list[str]:
    theirs = [median(row["peer_samples_us"]) for row in _rules("gdn_prefill_h200_earlier") if _is_long_and_alone(row)]
    ours = [median(row["samples_us"]) for row in _rules() if _is_long_and_alone(row)]
    return [f"{us:.0f}" for us in theirs] + [f"{a / b:.1f}" for a, b in zip(theirs, ours, strict=True)]


def flashinfer_on_batches() -> list[str]:
    return [f"{max(1 / _times_as_long(row, 'flashinfer') for row in _rules() if row['sequences'] > 1):.1f}"]


def copy_of_conv() -> list[str]:
    return [f"{read('gdn_prefill_kernels_h200')['copy_of_conv_us']['8x1024']:.0f}"]


def rate_of_norm() -> list[str]:
    """Outputs and gates are read, outputs written: three bfloat16 values for 32 heads of 128."""
    seconds = read("gdn_prefill_kernels_h200")["rows"]["8x1024"]["now"]["norm"] / 1e6
    return [f"{3 * 2 * 8 * 1024 * 32 * 128 / seconds / 1e12:.1f}"]


_KEPT = {"waits": "after asking for the state", "dependent_launch": "waits and triggers", "warps": 4, "maxnreg": 255}
_KEPT |= {"load_hint": "none", "store_hint": "none", "barrier_after_state": True}


def _form(**wanted: object) -> list[float]:
    """Of the last call's forms of decode: microseconds at 1, 8, 64 and 256 sequences."""
    rows = read("gdn_decode_forms_h200")["calls"][4]["rows"]
    found: list[float] = next(row["us"] for row in rows if (_KEPT | wanted).items() <= row.items())
    return found


def arithmetic_over_a_copy() -> list[str]:
    kept, copy = _form(piece_of_K=32, copies_the_state_alone=False), _form(piece_of_K=128, copies_the_state_alone=True)
    return [f"{100 * (kept[i] / copy[i] - 1):.0f}" for i in (3, 2)]


def copy_of_the_floor() -> list[str]:
    record = read("gdn_decode_forms_h200")
    heads, rate = record["heads"][1], record["calls"][0]["copy_bytes_per_s"]
    floor = 2 * 64 * heads * record["key_dim"] * record["value_dim"] * 4 / rate * 1e6
    return [f"{100 * floor / _form(piece_of_K=128, copies_the_state_alone=True)[2]:.0f}"]


def hints() -> list[str]:
    """Gains at one sequence and losses at 256, the least and the most of what was tried."""
    kept = _form(piece_of_K=32, copies_the_state_alone=False)
    tried = [_form(piece_of_K=32, copies_the_state_alone=False, **{hint: name}) for hint, name in _HINTS]
    gains = [100 * (1 - us[0] / kept[0]) for us in tried]
    losses = [100 * (us[3] / kept[3] - 1) for us in tried]
    return [f"{value:.0f}" for value in (min(gains), max(gains), min(losses), max(losses))]


_HINTS = (("load_hint", "evict_first"), ("store_hint", ".cs"))


def _skinny(form: str, model: str) -> float:
    """Over the form that was kept, in the same call."""
    rows = read("linear_skinny_forms_h200")["rows"]
    row = next(row for row in rows if form in row["form"])
    kept = next(i for i, each in enumerate(rows) if "the form that was kept" in each["form"])
    beside = rows[kept] if row["call"] == rows[kept]["call"] else rows[kept + 1]
    assert beside["call"] == row["call"], f"no form that was kept in the call of {form}"
    return 100 * (float(row["us"][model]) / beside["us"][model] - 1)


def _from_to(form: str) -> list[str]:
    each = [_skinny(form, model) for model in ("4b", "0.8b", "9b")]
    return [f"{min(each):.0f}", f"{max(each):.0f}"]


def crowd_with_a_router_in_tiles() -> list[str]:
    rows = read("moe_router_forms_h200")["rows"]
    return [f"{max(row['throughput']['64x512/128']):.0f}" for row in rows]


def what_fla_could_not_have() -> list[str]:
    """By length of chunks, and how many sequences' states of one layer the second is."""
    cases: dict[str, set[str]] = {}
    for row in read("first_request")["rows"]:
        for error in row["burst_errors"]:
            cases.setdefault(row["case"], set()).update(re.findall(r"Tried to allocate (\d+)\.00 MiB", error))
    (buffer,), (states,) = cases["fla-16"], cases["fla-32"] | cases["fla-64"]
    return [buffer, states, f"{int(states) * MIB // (32 * 128 * 128 * 4)}"]


def first_call_of_fla() -> list[str]:
    found = read("peers_h200")["fla"]["first_call"]
    return [f"{found['seconds']:g}", f"{found['peak_bytes'] / MIB:.0f}"]


def growth_of_vllm() -> list[str]:
    return re.findall(r"(\d\.\d)\d? GiB", read("peers_h200")["vllm"]["growth"])


def growth_in_transcripts() -> list[str]:
    """Of transformers without and with a warm-up of one prompt."""
    names = "audit_transformers", "audit_transformers_warm"
    grown = (re.findall(r"grew by (\d+) bytes", (RESULTS / f"{name}.txt").read_text()) for name in names)
    return [f"{sum(map(int, each)) / MIB:.0f}" for each in grown]


def flashinfer_against_our_mixer() -> list[str]:
    """Over all shapes of each family of heads, as the shipped table has it."""
    table = read_table(files("hotstart.kernels") / "tables" / "nvidia-h200.json")
    gains = [entry.gain for entry in table.entries if entry.family.get("backend") == "flashinfer"]
    return [f"{1 / gain:.2f}" for gain in (max(gains), min(gains))]


TOLD: dict[str, list[Sentence]] = {
    "docs/PREFILL.md": [
        (
            "faster than flash-linear-attention on every shape, {} to {} times in that call, and {} times or more on "
            "single prompts from 2048 tokens on.",
            faster_than_fla,
        ),
        (
            "it took {}, {} and {} us for those, which would still be {}, {} and {} times ours.",
            fla_in_an_earlier_call,
        ),
        ("and up to {} times as fast on full batches.", flashinfer_on_batches),
        ("The same loads and stores without any arithmetic take {} us", copy_of_conv),
        ("- **norm** runs at {} TB/s.", rate_of_norm),
    ],
    "docs/DECODE.md": [
        ("arithmetic adds {} % at 256 sequences and {} % at 64 to the best copy in place", arithmetic_over_a_copy),
        ("of the states in place by slot, without any arithmetic, reaches {} % (the last", copy_of_the_floor),
        ("gain {} to {} % at one sequence and lose {} to {} % at 256", hints),
        (
            "(`cp.async.bulk.prefetch.L2`) lose {} to {} %",
            lambda: _from_to("asked into the L2 cache"),
        ),
        ("lose {} to {} %. - How a program is cut", lambda: _from_to("programs that stay")),
    ],
    "docs/AUDIT.md": [("and {} MiB of growth become {} MiB", growth_in_transcripts)],
    "docs/EXPERTS.md": [
        ("with it a crowd of 64 made {} tokens a second, without it {} (of", crowd_with_a_router_in_tiles)
    ],
    "docs/PERFORMANCE.md": [
        (
            "What cannot be had with chunks of 16 is {} MiB, the buffer with which Triton's tuner clears the GPU's "
            "cache between two measurements; with chunks of 32 and 64 it is {} MiB, the states of a step's {} "
            "sequences once",
            what_fla_could_not_have,
        )
    ],
    "docs/WARMUP.md": [
        ("chunked rule takes {} s and {} MiB;", first_call_of_fla),
        ("it takes {} to {} times as long as our kernels, host included", flashinfer_against_our_mixer),
    ],
    "docs/ORIGIN.md": [
        ("**Tuning takes memory**: {} MiB on an H200", lambda: first_call_of_fla()[1:]),
        ("a burst of 1024 prompts grew a server by {} GiB after ready", growth_of_vllm),
    ],
}
