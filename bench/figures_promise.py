"""Figures of the promise on a GPU, the sums that it rests on, and the failure that others have."""

import statistics
from collections import Counter

from bench.figures_gpu import GIB, MIB, Record, read

__all__ = ["first_requests", "picture", "promise", "target", "usable_tokens"]


def target(met: bool) -> str:
    """What stands before a figure that had one to reach."""
    return "met:" if met else "**missed:**"


def promise() -> list[str]:
    tight, pressed, starts = read("gpu_tight"), read("gpu_pressed"), read("gpu_starts")["rows"]
    cold, warm, peers = read("gpu_cold"), read("gpu_warm"), read("peers_h200")
    vllm, ratios = peers["vllm"], [row["ratio"] for row in starts]
    traffic, burst, beside, lengths = (tight[name] for name in ("traffic", "burst", "neighbour", "lengths"))
    driver = tight["driver_growth_bytes"] / MIB
    sealed = not tight["reserved_growth_bytes"] and driver <= 32
    grown = f"torch {tight['reserved_growth_bytes']} bytes, driver {driver:.1f} MiB"
    served = not burst["failed"] and not burst["num_late"]
    median, p95 = lengths["median"], lengths["p95"]
    ready = [run["process_to_ready_s"] for run in (*starts, cold, warm)]
    rows = [
        (
            f"growth after ready: {traffic['requests']} random requests, then 1024 at once of 8 + 8 tokens",
            vllm["growth"],
            "torch 0 bytes, driver at most 32 MiB",
            f"{target(sealed)} {grown}",
        ),
        (
            "that burst with 97.5 % of the card in use, under `--strict`",
            vllm["tight_burst"],
            "served, no event",
            f"{target(served)} {burst['failed']} failed, {burst['num_late']} events",
        ),
        (
            f"the burst again after another process took {beside['taken_bytes'] / GIB:.0f} GiB",
            "-",
            "no request fails",
            f"{target(not beside['failed'])} {beside['failed']} failed",
        ),
        _late_row(tight, pressed, vllm["late"]),
        (
            f"first request over the median of the next 20 of its length, {len(starts)} fresh starts: median (worst)",
            vllm["first_over_later"],
            "1.05",
            f"{target(statistics.median(ratios) <= 1.05)} {statistics.median(ratios):.3f} ({max(ratios):.3f})",
        ),
        (
            f"first over second request of a length never seen, {len(lengths['samples_ms'])} lengths: median / p95",
            vllm["new_length"],
            "1.05 / 1.15",
            f"{target(median <= 1.05 and p95 <= 1.15)} {median:.3f} / {p95:.3f}",
        ),
        _started(
            f"caches cold / warm, up to 256 sequences (warm: the median of {len(starts) - 1})",
            *(ready[0], statistics.median(ready[1 : len(starts)])),
            vllm["ready"],
        ),
        _started("the same, up to 1024", *ready[-2:], "-"),
        _usable_row(),
    ]
    lines = ["| what | vLLM 0.25.1 | must | hotstart |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    runs = {"all in one": tight, "few pages": pressed, "cold": cold, "warm": warm, "fresh starts": starts[0]}
    return [*lines, "", f"{_where(runs)}; `python -m bench.promise`; vLLM: {peers['where']}"]


def _late_row(tight: Record, pressed: Record, theirs: str) -> tuple[str, str, str, str]:
    """Met only if the traffic brought all that it is there to bring."""
    both = [run["traffic"] for run in (tight, pressed)]
    brought = sum((Counter(found["brought"]) for found in both), Counter())
    missing = [what for what in both[0]["brought"] if not brought[what]]
    told = ", ".join(f"{count} {name}" for name, count in brought.items())
    what = (
        f"late compiles, tunings, loads in all of this, and in another process in {both[1]['requests']} random "
        f"requests with every option of sampling and few pages; in both: {told}"
    )
    late, failed = tight["num_late"] + pressed["num_late"], sum(found["failed"] for found in both)
    told = f"{late}" + (f", {failed} requests failed" if failed else "")
    told += f"; without {', '.join(missing)}" if missing else ""
    return what, theirs, "0", f"{target(not late and not failed and not missing)} {told}"


def _where(runs: dict[str, Record]) -> str:
    """Of one machine, and of one commit, but for those that are named."""
    first, *_ = runs.values()
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    others = [f", {name}: {run['commit']}" for name, run in runs.items() if run["commit"] != first["commit"]]
    told = f"commit {first['commit']}{''.join(others)}"
    return f"{first['device']}, CUDA {first['cuda']}, {versions}; {first['date']}; {told}"


def _started(how: str, cold: float, warm: float, theirs: str) -> tuple[str, str, str, str]:
    reached = f"{target(cold <= 40 and warm <= 12)} {cold:.1f} / {warm:.1f} s"
    return f"start of the process to ready, {how}", theirs, "40 / 12 s", reached


def _usable() -> dict[str, tuple[int, dict[str, tuple[int, int, int, int]]]]:
    """Bytes of a card's caches, and of whom: bytes of 256 states, of a piece of the rest, its tokens, pieces."""
    block, whole = read("peers_h200")["vllm"]["block"], read("gpu_cold")["plan"]
    (small,) = (row["plan"] for row in read("first_request")["rows"] if row["case"] == "triton-64" and row["warm"])
    page, slot, size = whole["page_bytes"], whole["slot_bytes"], whole["page_size"]
    budgets = {
        "32 GiB left": small["state slots"] + small["cache pages"],
        "whole": whole["num_pages"] * page + whole["num_slots"] * slot,
    }
    found = {}
    for card, budget in budgets.items():
        cuts = {
            "hotstart": (256 * slot, page, size),
            "vLLM 0.25.1": (256 * block["state_blocks"] * block["bytes"], block["bytes"], block["tokens"]),
        }
        found[card] = budget, {who: (*cut, (budget - cut[0]) // cut[1]) for who, cut in cuts.items()}
    return found


def usable_tokens() -> list[str]:
    """Of equally long sequences, 256 at once, in the bytes that a measured plan gives to pages and slots."""
    lines = [
        "| card | for caches | who | 256 states | what is left, in pieces | tokens of each sequence | usable tokens |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for card, (budget, whose) in _usable().items():
        for who, (states, piece, tokens, count) in whose.items():
            each = count // 256 * tokens
            lines.append(
                f"| {card} | {budget / GIB:.2f} GiB | {who} | {states / GIB:.2f} GiB |"
                f" {count} of {piece / MIB:.1f} MiB, {tokens} tokens | {each} | {256 * each} |"
            )
    return lines


def _usable_row() -> tuple[str, str, str, str]:
    """Of the promise's table; the sums stand in docs/MEMORY.md."""
    tokens = {card: [256 * (c // 256 * t) for _, _, t, c in whose.values()] for card, (_, whose) in _usable().items()}
    ours, theirs = (" / ".join(f"{pair[i]}" for pair in tokens.values()) for i in (0, 1))
    more = all(pair[0] > pair[1] for pair in tokens.values())
    what = f"usable tokens of 256 sequences from the same budget, {' / '.join(tokens)} ([the sums](MEMORY.md))"
    return what, f"{theirs}, blocks of 528", "more", f"{target(more)} {ours}"


def first_requests() -> list[str]:
    record = read("first_request")
    lines = [
        "| prefill | warm-up | ready | first request | later ones | late compiles | late tunings | out of memory |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        name, chunk = row["case"].split("-")
        who = ("ours" if name == "triton" else name) + f", chunks of {chunk}"
        late = [_late(row, kind) for kind in ("compile", "tuning")]
        compiles, tunings = (f"{count}, {seconds:.1f} s" if count else "0" for count, seconds in late)
        failed = row["burst_failed"] + len(row["first_errors"])
        lines.append(
            f"| {who} | {'on' if row['warm'] else '**off**'} | {row['ready_s']:.1f} s | {row['first_ms'] / 1e3:.2f} s |"
            f" {row['later_ms'] / 1e3:.2f} s | {compiles} | {tunings} | {failed} of 2069 |"
        )
    facts = record["rows"][0]["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    left, commits = record["left_bytes"] / GIB, dict[str, list[str]]()
    for row in record["rows"]:
        if row["warm"] and "commit" in row["facts"]:
            commits.setdefault(row["facts"]["commit"], []).append(row["case"])
    each = (f"; commit {commit}: {', '.join(cases)}" for commit, cases in commits.items())
    where = f"{facts['device']} with {left:.1f} GiB left, {versions}; {facts['date']}{''.join(each)}"
    return [*lines, "", f"{where}; `python -m bench.first_request`"]


def _late(row: Record, kind: str) -> tuple[int, float]:
    mine = [event for event in row["late"] if event["kind"] == kind]
    return sum(event["count"] for event in mine), sum(event["seconds"] for event in mine)


# One picture for light and dark pages: it follows the reader's system.
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.small { font-size: 11px; fill: #59636e; }
.off { fill: #d1242f; }
.on { fill: #1a7f37; }
.axis { stroke: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .small { fill: #9198a1; }
  .off { fill: #f85149; }
  .on { fill: #3fb950; }
  .axis { stroke: #3d444d; }
}
"""
_LEFT, _WIDTH, _ROW = 150, 760, 58


def picture() -> str:
    """Seconds of the first request, without the warm-up and with it."""
    record = read("first_request")
    rows = [row for row in record["rows"] if "first_ms" in row]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    longest = max(row["first_ms"] for row in rows)
    height = 62 + _ROW * len(cases)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        "<title>Seconds of the first request after ready, without the warm-up and with it</title>",
        f"<style>{_STYLE}</style>",
        '<text x="0" y="18">Seconds of the first request after ready</text>',
        '<text x="0" y="36" class="small">Qwen3.5-4B shape, 1024 tokens in, 32 out, '
        f"{record['left_bytes'] / GIB:.0f} GiB of an H200 left; then 2048 requests of 8 tokens</text>",
        f'<line x1="{_LEFT}" x2="{_LEFT}" y1="48" y2="{height - 8}" class="axis"/>',
    ]
    for i, case in enumerate(cases):
        top = 52 + _ROW * i
        name, chunk = case.split("-")
        parts.append(f'<text x="0" y="{top + 18}">{"our kernels" if name == "triton" else name}</text>')
        parts.append(f'<text x="0" y="{top + 34}" class="small">chunks of {chunk}</text>')
        for row in rows:
            if row["case"] == case:
                parts += _bar(row, top + 22 * row["warm"], longest)
    return "\n".join([*parts, "</svg>", ""])


def _bar(row: Record, top: int, longest: float) -> list[str]:
    width = max(2, round(200 * row["first_ms"] / longest))
    failed = row["burst_failed"] + len(row["first_errors"])
    compiles, tunings = _late(row, "compile")[0], _late(row, "tuning")[0]
    words = f"{row['first_ms'] / 1e3:.2f} s, warm-up {'on' if row['warm'] else 'off'}: "
    words += f"{compiles} compiles, {tunings} tunings" if row["num_late"] else "nothing late"
    words += f"; {failed} out of memory" if failed else "; none failed"
    kind = "on" if row["warm"] else "off"
    return [
        f'<rect x="{_LEFT}" y="{top + 4}" width="{width}" height="16" rx="2" class="{kind}"/>',
        f'<text x="{_LEFT + width + 8}" y="{top + 17}" class="small">{words}</text>',
    ]
