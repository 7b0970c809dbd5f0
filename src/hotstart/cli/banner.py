"""The eight lines that `hotstart serve` shows once it is ready."""

from typing import TYPE_CHECKING

from hotstart.engine.memory import as_size

if TYPE_CHECKING:
    from hotstart.engine.messages import Ready
    from hotstart.engine.phases import Phase
    from hotstart.server.service import Service

__all__ = ["banner"]


def banner(service: "Service", url: str) -> dict[str, str]:
    """What runs, where, how much it takes, and what it cost to get there."""
    ready, phases = service.ready, service.client.startup.phases
    details = {phase.name: phase.detail for phase in phases}
    late = {kind: count for kind, count in service.late_counts().items() if count is not None}
    auth = "" if service.keys.digests else "  (no API key is asked for)"
    return {
        "model": f"{', '.join(service.model_names)}  ({details.get('read config', '')})",
        "device": f"{ready.device}, {ready.memory_plan['total_source']}",
        "plan": _plan(ready),
        "capacity": _capacity(ready),
        "kernels": "; ".join(details[name] for name in ("choose kernels", "warm up kernels") if details.get(name)),
        "start-up": _startup(phases),
        "late events": f"{sum(late.values())} since the seal; watched: {', '.join(late)}",
        "ready at": f"{url}/v1, a page at {url}{auth}" if url.startswith("http") else f"{url}{auth}",
    }


def _plan(ready: "Ready") -> str:
    *used, unused = ready.memory_plan["lines"]
    largest = sorted(used, key=lambda line: -line["num_bytes"])[:4]
    shown = [f"{line['name']} {as_size(line['num_bytes'])}" for line in (*largest, unused)]
    return f"{as_size(ready.memory_plan['total_bytes'])}: {', '.join(shown)}"


def _capacity(ready: "Ready") -> str:
    limits = ready.limits
    return (
        f"{limits.max_num_seqs} sequences at a time, each of {limits.max_model_len} tokens at most; "
        f"{limits.num_pages * limits.page_size} tokens in {limits.num_pages} pages, {limits.num_slots} state slots"
    )


def _startup(phases: "list[Phase]") -> str:
    longest = sorted(phases, key=lambda phase: -phase.seconds)[:3]
    shown = ", ".join(f"{phase.name} {phase.seconds:.1f}" for phase in longest)
    return f"{sum(phase.seconds for phase in phases):.1f} s, of which {shown}"
