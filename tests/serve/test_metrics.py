"""/metrics says what docs/METRICS.md says that it does, and its numbers are those of clients' requests alone."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hotstart.server.histogram import Histogram
from serve.conftest import MODEL, Server, StartServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "METRICS.md"
PHASES = ("queue", "prefill", "decode", "inference")


def test_the_document_names_every_metric_and_no_other(server: Server) -> None:
    told = set(re.findall(r"`((?:vllm|hotstart):\w+)`", DOCUMENT.read_text()))
    families = list(text_string_to_metric_families(server.ask("/metrics")[1]))
    assert told == {family.name + ("_total" if family.type == "counter" else "") for family in families}
    for family in families:
        for sample in family.samples:
            assert sample.labels["engine"] == "0" and sample.labels["model_name"] == MODEL, sample


def test_counts_begin_when_the_server_is_ready(start_server: StartServer) -> None:
    """And one request of six tokens in and five out moves each by what it is."""
    server = start_server()
    server.wait_until(server.is_ready, "ready", 90)
    counters = ("prompt_tokens_total", "generation_tokens_total", "request_success_total", "num_preemptions_total")
    assert [server.metric(f"vllm:{name}") for name in counters] == [0.0] * 4
    assert server.metric("hotstart:steps_total") == server.metric("hotstart:step_tokens_total") == 0
    assert server.metric("vllm:e2e_request_latency_seconds_count") == 0
    status, _ = server.ask("/v1/completions", {"prompt": [5] * 6, "max_tokens": 5, "ignore_eos": True})
    assert status == 200
    server.wait_until(server.is_idle, "idle")
    assert [server.metric(f"vllm:{name}") for name in counters] == [6.0, 5.0, 1.0, 0.0]
    assert (server.metric("hotstart:steps_total"), server.metric("hotstart:step_tokens_total")) == (5, 10)
    for name in ("time_to_first_token", "e2e_request_latency", *(f"request_{phase}_time" for phase in PHASES)):
        assert server.metric(f"vllm:{name}_seconds_count") == 1, name
    assert server.metric("vllm:inter_token_latency_seconds_count") == 4
    parts = [server.metric(f"vllm:request_{phase}_time_seconds_sum") for phase in PHASES]
    whole = server.metric("vllm:e2e_request_latency_seconds_sum")
    assert parts[1] + parts[2] == pytest.approx(parts[3]) and parts[0] + parts[3] == pytest.approx(whole, abs=2e-3)
    assert server.ask("/plan")[1]["now"]["first_token_s"]["requests"] == 1


def test_a_histogram_counts_what_is_at_most_its_edge() -> None:
    histogram = Histogram("x_seconds", "about x", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    (family,) = [histogram.family({"engine": "0"})]
    found = {s.labels.get("le", s.name): s.value for s in family.samples}
    assert found == {"0.1": 2, "1.0": 3, "+Inf": 4, "x_seconds_count": 4, "x_seconds_sum": 7.65}
