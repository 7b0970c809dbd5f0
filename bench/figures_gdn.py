"""Figures of the Gated DeltaNet kernels: prefill beside other libraries, and kernel by kernel; forms of decode."""

from statistics import median
from typing import Any

from bench.figures_gpu import read

__all__ = [
    *("binaries", "chunk_lengths", "decode", "decode_forms", "host", "kernels", "mixers", "prefill", "short_prompts"),
]

Row = dict[str, Any]
LENGTHS = (16, 32, 64)
HOST = {
    "launches": "launches",
    "before_us": "before",
    "by_triton_us": "now, by Triton's launcher",
    "us": "now",
    "without_launches_us": "without the launches",
    "first_us": "first layer of a step",
}
PEERS = {"fla": "flash-linear-attention", "flashinfer": "FlashInfer"}


def circumstances(record: Row) -> str:
    peers = "".join(f", {words} {record[name]}" for name, words in PEERS.items() if name in record)
    return (
        f"{record['gpu']}, driver {record['driver']}, torch {record['torch']}, Triton {record['triton']}{peers}; "
        f"kernels of {record['commit']}; `{record['command']}`"
    )


def _name(row: Row) -> str:
    return f"{row['sequences']} x {row['tokens']}"


def _us(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def prefill() -> list[str]:
    """The rule and the mixer of each shape in one line."""
    record = read("gdn_prefill_h200")
    rows: dict[str, dict[str, Row]] = {}
    for row in record["rows"]:
        rows.setdefault(_name(row), {})[row["scope"]] = row
    lines = [
        "| sequences x tokens | rule alone | flash-linear-attention | ratio | FlashInfer | ratio |"
        " whole mixer, conv to gated norm | floor by bytes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, scopes in rows.items():
        rule, mixer = scopes["rule"], scopes["mixer"]
        ours = median(rule["samples_us"])
        theirs = [median(rule["peers"][peer]["samples_us"]) for peer in PEERS]
        beside = " | ".join(f"{_us(us)} | {us / ours:.2f}" for us in theirs)
        floor = mixer["bytes"] / record["copy_bytes_per_s"] * 1e6
        lines.append(f"| {name} | {_us(ours)} | {beside} | {_us(median(mixer['samples_us']))} | {_us(floor)} |")
    long = rows["1 x 32768"]
    return [
        *lines,
        "",
        f"Peak memory of a call at 1 x 32768: the mixer {_mib(long['mixer'])} MiB, the rule alone {_mib(long['rule'])}"
        f" (flash-linear-attention {_mib(long['rule']['peers']['fla'])}, FlashInfer"
        f" {read('gdn_prefill_flashinfer')['peak_mib_1x32768']}, which it keeps).",
        "",
        circumstances(record),
    ]


def mixers() -> list[str]:
    """The whole mixer with FlashInfer's rule in the place of ours."""
    record = read("gdn_mixers_h200")
    lines = [
        "| sequences x tokens | ours | through FlashInfer | ratio | host, ours | host, through FlashInfer |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        peer = row["peers"]["flashinfer"]
        ours, theirs = (median(one["samples_us"]) for one in (row, peer))
        lines.append(
            f"| {_name(row)} | {_us(ours)} | {_us(theirs)} | {theirs / ours:.2f} |"
            f" {_us(row['host_us'])} | {_us(peer['host_us'])} |"
        )
    return [*lines, "", circumstances(record)]


def _mib(row: Row) -> str:
    return f"{row['peak_bytes'] / 2**20:.0f}"


def host() -> list[str]:
    rows = read("gdn_prefill_host_h200")["rows"]
    lines = [f"| | {' | '.join(rows)} |", f"|---|{'---:|' * len(rows)}"]
    for key, words in HOST.items():
        cells = ("" if row[key] is None else row[key] if key == "launches" else _us(row[key]) for row in rows.values())
        lines.append(f"| {words} | {' | '.join(map(str, cells))} |")
    return lines


def kernels() -> list[str]:
    record = read("gdn_prefill_kernels_h200")
    lines = ["| | conv | prep | scan | norm |", "|---|---:|---:|---:|---:|"]
    for name, times in record["rows"].items():
        before, now = times["earlier"], times["now"]
        before = {**before, "prep": before["solve"] + before["apply"]}
        for label, row in ((f"{name.replace('x', ' x ')}, before", before), ("now", now)):
            lines.append(f"| {label} | {' | '.join(_us(row[key]) for key in ('conv', 'prep', 'scan', 'norm'))} |")
    counters = {key: value for key, value in record["counters_8x1024"].items() if key != "how"}
    for label in ("dram", "l2", "issue"):
        cells = " | ".join(f"{counters[key][f'{label}_percent']} %" for key in ("conv", "prep", "scan", "norm"))
        lines.append(f"| {'issue slots' if label == 'issue' else label.upper()} in use at 8 x 1024 | {cells} |")
    return lines


def chunk_lengths() -> list[str]:
    record = read("gdn_chunk_lengths_h200")
    found = {(_name(row), row["chunk_length"]): median(row["samples_us"]) for row in record["rows"]}
    lines = ["| sequences x tokens | chunk 16 | chunk 32 | chunk 64 |", "|---|---:|---:|---:|"]
    for name in dict.fromkeys(name for name, _ in found):
        lines.append(f"| {name} | {' | '.join(_us(found[name, length]) for length in LENGTHS)} |")
    return [*lines, "", circumstances(record)]


def short_prompts() -> list[str]:
    """What WARMUP.md says of it, in one sentence."""
    rows = read("gdn_chunk_lengths_h200")["rows"]
    found = {(_name(row), row["chunk_length"]): row for row in rows}

    def us(name: str, length: int) -> str:
        return _us(median(found[name, length]["samples_us"]))

    one, many, full = "1 x 16", "64 x 16", "64 x 64"
    return [
        f"A prompt of 16 tokens takes {us(one, 64)} us a layer with chunks of 64 and {us(one, 16)} with chunks of 16,",
        f"under {found[one, 64]['host_us']:.0f} us of the host's time either way; 64 such prompts at once take"
        f" {us(many, 64)} and {us(many, 16)} us,",
        f"64 prompts of 64 tokens {us(full, 64)} and {us(full, 16)}.",
    ]


def binaries() -> list[str]:
    record = read("gdn_binaries")
    found = {(row["target"], row["chunk_length"]): row for row in record["rows"]}

    def cells(key: str, form: str, scale: float = 1.0) -> list[str]:
        return [
            " / ".join(form.format(found[target, length][key] / scale) for target in ("sm_90", "sm_120"))
            for length in LENGTHS
        ]

    def total(key: str, form: str) -> str:
        sums = (sum(found[target, length][key] for length in LENGTHS) for target in ("sm_90", "sm_120"))
        return " / ".join(map(form.format, sums))

    rows = [
        ("binaries on sm_90 / sm_120", [*cells("binaries", "{:.0f}"), total("binaries", "{:.0f}")]),
        ("seconds to compile them", [*cells("compile_s", "{:.1f}"), total("compile_s", "{:.1f}")]),
        ("most shared memory of a binary, KiB", [*cells("shared_bytes", "{:.0f}", 1024), ""]),
    ]
    lines = ["| | chunk 16 | chunk 32 | chunk 64 | all three |", "|---|---|---|---|---|"]
    lines += [f"| {label} | {' | '.join(values)} |" for label, values in rows]
    return [*lines, "", f"CPU time without the assembler's, Triton {record['triton']}; `{record['command']}`"]


def decode() -> list[str]:
    record = read("gdn_decode_h200")
    lines = [
        "| sequences | a step | floor: the state | of the floor | between two matrix products | host |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        us, floor = median(row["samples_us"]), row["bytes"] / record["copy_bytes_per_s"] * 1e6
        lines.append(
            f"| {row['sequences']} | {_us(us)} | {_us(floor)} | {floor / us:.0%} | {_us(row['between_us'])} |"
            f" {_us(row['host_us'])} |"
        )
    return [*lines, "", circumstances(record)]


def decode_forms() -> list[str]:
    """One line for each of the chosen rows: what it is, and which row of which call."""
    record = read("gdn_decode_forms_h200")
    copy = record["calls"][0]["copy_bytes_per_s"]
    H, K, V = record["heads"][1], record["key_dim"], record["value_dim"]
    floors = [2 * n * H * K * V * 4 / copy * 1e6 for n in record["sequences"]]
    lines = ["| form | call | 1 | 8 | 64 | 256 |", "|---|---:|---:|---:|---:|---:|"]
    lines.append(f"| floor: the state, read and written once, at the rate of a copy | 1 | {_cells(floors)} |")
    lines.append(f"| before: two launches | 0 | {_cells(record['before']['us'])} |")
    for label, call, wanted in _FORMS:
        row = next(r for r in record["calls"][call - 1]["rows"] if wanted.items() <= r.items())
        lines.append(f"| {label} | {call} | {_cells(row['us'])} |")
    circumstances = f"{record['gpu']}, driver {record['driver']}, torch {record['torch']}, Triton {record['triton']}"
    return [*lines, "", f"{circumstances}; 16 key heads, 32 value heads of 128, float32 states, microseconds a step"]


def _cells(values: list[float]) -> str:
    return " | ".join(_us(value) for value in values)


_WHOLE = {"through": "registers", "rows_of_a_tile": 128, "copies_the_state_alone": False, "store_hint": "none"}
_SHARED = {"through": "shared memory", "rows_of_a_tile": 16, "stages": 6, "warps": 4, "copies_the_state_alone": False}
_ASKED = "after asking for the state"
_EARLY = {"piece_of_K": 32, "copies_the_state_alone": False, "load_hint": "none", "store_hint": "none"}
_EARLY |= {"barrier_after_state": True, "dependent_launch": "waits and triggers"}
_FORMS: list[tuple[str, int, Row]] = [
    (
        "the state alone, copied in place by slot: no arithmetic",
        2,
        {"through": "registers", "copies_the_state_alone": True, "dependent_launch": "waits"},
    ),
    ("the same", 3, {"through": "registers", "copies_the_state_alone": True, "warps": 8}),
    (
        "one launch; each tap is kept as it is read, so that its load waits for the one before",
        1,
        _WHOLE | {"warps": 8, "piece_of_K": 32, "dependent_launch": "waits", "load_hint": "none"},
    ),
    ("all taps first; tiles through shared memory", 2, _SHARED | {"piece_of_K": 128, "l2_prefetch": False}),
    ("K in pieces, lengths in every row; tiles through shared memory", 3, _SHARED | {"piece_of_K": 64, "maxnreg": 96}),
    (
        "the same, whole state in registers, 16 warps",
        3,
        _WHOLE | {"warps": 16, "piece_of_K": 32, "dependent_launch": "waits"},
    ),
    (
        "8 warps, one program a multiprocessor",
        3,
        _WHOLE | {"warps": 8, "maxnreg": 255, "piece_of_K": 32, "dependent_launch": "waits", "load_hint": "none"},
    ),
    (
        "8 warps, 128 registers: two programs a multiprocessor",
        3,
        _WHOLE | {"warps": 8, "maxnreg": 128, "piece_of_K": 32, "dependent_launch": "waits"},
    ),
    (
        "and the next launch may begin",
        3,
        _WHOLE | {"warps": 8, "maxnreg": 128, "piece_of_K": 32, "dependent_launch": "waits and triggers"},
    ),
    ("the same", 4, _EARLY | {"waits": "first", "warps": 8, "maxnreg": 128}),
    ("waits after the slots are read", 4, _EARLY | {"waits": "after the slots", "warps": 8, "maxnreg": 128}),
    ("waits after the state is asked for", 4, _EARLY | {"waits": _ASKED, "warps": 8, "maxnreg": 128}),
    ("4 warps, 255 registers: the form that is kept", 4, _EARLY | {"waits": _ASKED, "warps": 4, "maxnreg": 255}),
    ("the same", 5, _EARLY | {"waits": _ASKED, "warps": 4, "maxnreg": 255}),
    ("K in pieces of 64", 5, _EARLY | {"waits": _ASKED, "warps": 4, "maxnreg": 255, "piece_of_K": 64}),
    ("the state alone, copied in place by slot", 5, _EARLY | {"copies_the_state_alone": True, "maxnreg": 255}),
    ("the same, a row to a warp", 5, _EARLY | {"copies_the_state_alone": True, "maxnreg": 255, "piece_of_K": 128}),
]
