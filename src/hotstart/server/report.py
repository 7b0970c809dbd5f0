"""What the engine told last and start-up left behind: for /metrics as samples, for /plan and the page as JSON."""

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hotstart import __version__
from hotstart.engine.imports import late_import
from hotstart.engine.messages import Ready, Stats
from hotstart.server.client import EngineClient
from hotstart.server.metrics import Sample

if TYPE_CHECKING:
    from hotstart.server.service import Service

__all__ = ["late_counts", "plan", "samples"]

IMPORT = "import"


def late_events(client: EngineClient, imported: Sequence[str]) -> list[dict[str, Any]]:
    """After the seal, in either process; `imported` is what the HTTP process imported."""
    return [*client.late_events, *(late_import(name, "the HTTP process") for name in imported)]


def late_counts(client: EngineClient, imported: Sequence[str]) -> dict[str, int | None]:
    """By kind; None where nothing on the device could ever be such an event."""
    events = late_events(client, imported)
    return {**client.stats.late, IMPORT: sum(event["kind"] == IMPORT for event in events)}


def samples(client: EngineClient, imported: Sequence[str]) -> Iterator[Sample]:
    stats = client.stats
    yield Sample("gauge", "vllm:num_requests_running", "requests that steps compute", stats.num_running)
    yield Sample("gauge", "vllm:num_requests_waiting", "requests that wait", stats.num_waiting)
    yield Sample("counter", "vllm:num_preemptions", "requests sent back to the queue", stats.num_preemptions)
    yield Sample("counter", "hotstart:steps", "steps of the engine", stats.num_steps)
    yield Sample("counter", "hotstart:step_tokens", "tokens that steps computed", stats.num_step_tokens)
    for kind, count in late_counts(client, imported).items():
        if count is not None:
            about = "after the seal; a kind that the device cannot have is not listed"
            yield Sample("counter", "hotstart:late_events", about, count, {"kind": kind})
    yield Sample("gauge", "hotstart:arena_growth_bytes", "since the seal", stats.arena_growth_bytes)
    if stats.resident_growth_bytes is not None:
        about = "of the engine's process, since the seal"
        yield Sample("gauge", "hotstart:resident_growth_bytes", about, stats.resident_growth_bytes)
    yield Sample("gauge", "hotstart:engine_silence_seconds", "since the last sign of life", client.silence_s)
    for phase in client.startup.phases:
        yield Sample("gauge", "hotstart:startup_seconds", "by phase", phase.seconds, {"phase": phase.name})
    if client.ready is not None:
        yield from _capacity(client.ready, stats)


def _capacity(ready: Ready, stats: Stats) -> Iterator[Sample]:
    limits = ready.limits
    about = "share of the pages that requests use"
    yield Sample("gauge", "vllm:kv_cache_usage_perc", about, stats.pages_used / max(limits.num_pages, 1))
    config = {"block_size": str(limits.page_size), "num_gpu_blocks": str(limits.num_pages)}
    yield Sample("info", "vllm:cache_config", "pages of the cache", 1, config)
    for kind, total, used, cached in (
        ("page", limits.num_pages, stats.pages_used, stats.pages_cached),
        ("slot", limits.num_slots, stats.slots_used, stats.slots_cached),
    ):
        for state, count in (("total", total), ("used", used), ("cached", cached)):
            yield Sample("gauge", f"hotstart:{kind}s", f"{kind}s, by state", count, {"state": state})
    for line in ready.memory_plan["lines"]:
        about = "of the memory plan, by line"
        yield Sample("gauge", "hotstart:plan_bytes", about, line["num_bytes"], {"line": line["name"]})


def plan(service: "Service") -> dict[str, Any]:
    """All that one may want to see of a server, and nothing of what it was asked."""
    client, imported = service.client, service.imports.names
    startup, stats, ready = client.startup, client.stats, client.ready
    return {
        "status": service.status,
        "phase": startup.phase,
        "note": startup.note,
        "percent": 100.0 if service.is_open else startup.percent,
        "version": __version__,
        "models": list(service.model_names),
        "device": ready.device if ready else None,
        "strict": service.config.jit_monitor_mode == "error",
        "chat": service.has_chat,
        "startup": [
            {"name": p.name, "seconds": p.seconds, "num_bytes": p.num_bytes, "detail": p.detail} for p in startup.phases
        ],
        "warmup": {"kernels": ready.kernels if ready else [], "requests": [one._asdict() for one in startup.requests]},
        "memory_plan": ready.memory_plan if ready else None,
        "late_counts": late_counts(client, imported),
        "late_events": late_events(client, imported),
        "growth": {"arena_bytes": stats.arena_growth_bytes, "resident_bytes": stats.resident_growth_bytes},
        "now": _now(service, ready, stats),
    }


def _now(service: "Service", ready: Ready | None, stats: Stats) -> dict[str, Any]:
    metrics = service.metrics
    recent = sorted(metrics.recent_first)
    return {
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "pages": {
            "total": ready.limits.num_pages if ready else 0,
            "used": stats.pages_used,
            "cached": stats.pages_cached,
        },
        "slots": {
            "total": ready.limits.num_slots if ready else 0,
            "used": stats.slots_used,
            "cached": stats.slots_cached,
        },
        "prompt_tokens": metrics.num_prompt_tokens,
        "generation_tokens": metrics.num_generation_tokens,
        "ended": dict(metrics.ended),
        "refused": sum(metrics.refused.values()),
        "first_token_s": {
            "first": metrics.very_first,
            "median": statistics.median(recent) if recent else None,
            "worst": recent[-1] if recent else None,
            "requests": metrics.first.count,
        },
    }
