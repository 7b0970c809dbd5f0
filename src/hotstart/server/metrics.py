"""What the server counts.  Names that vLLM has are vLLM's, so that its dashboards show them; `hotstart:` is our own."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from hotstart.engine.outputs import OutputBuilder

__all__ = ["CONTENT_TYPE", "Metrics", "Sample"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABELS = ("model_name", "engine")

# Edges of vLLM's buckets: dashboards draw quantiles from them.
TIME_TO_FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
WHOLE = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
    960.0,
    1920.0,
    7680.0,
)
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
CHOICES = (1, 2, 5, 10, 20)


class Sample(NamedTuple):
    """What is read when somebody asks, and not counted here."""

    kind: Literal["gauge", "counter", "info"]
    name: str
    about: str
    value: float
    labels: Mapping[str, str] = {}


Samples = Callable[[], Iterable[Sample]]


class Metrics:
    def __init__(self, model_name: str, samples: Samples = tuple) -> None:
        self._registry = CollectorRegistry()
        labels = {"model_name": model_name, "engine": "0"}
        self._registry.register(_Sampled(samples, labels))

        def histogram(name: str, about: str, buckets: Sequence[float]) -> Any:
            return Histogram(f"vllm:{name}", about, LABELS, buckets=buckets, registry=self._registry).labels(**labels)

        def counter(name: str, about: str, *more: str) -> Any:
            made = Counter(f"vllm:{name}", about, (*LABELS, *more), registry=self._registry)
            return made if more else made.labels(**labels)

        self._labels = labels
        self._prompt_tokens = counter("prompt_tokens", "tokens of prompts")
        self._generation_tokens = counter("generation_tokens", "tokens of answers")
        self._cached_tokens = counter("prompt_tokens_cached", "tokens of prompts that the prefix cache spared")
        self._success = counter("request_success", "requests that ended, by how they did", "finished_reason")
        self._rejections = counter("admission_rejections", "requests that were refused, by why", "reason")
        self._first = histogram(
            "time_to_first_token_seconds", "from a request's arrival to its first token", TIME_TO_FIRST
        )
        self._between = histogram("inter_token_latency_seconds", "between two tokens of an answer", BETWEEN)
        self._per_token = histogram("request_time_per_output_token_seconds", "mean between an answer's tokens", BETWEEN)
        self._whole = histogram("e2e_request_latency_seconds", "from a request's arrival to its end", WHOLE)
        self._num_prompt = histogram("request_prompt_tokens", "tokens of a prompt", COUNTS)
        self._num_answer = histogram("request_generation_tokens", "tokens of an answer", COUNTS)
        self._n = histogram("request_params_n", "answers asked for", CHOICES)
        self._max_tokens = histogram("request_params_max_tokens", "max_tokens asked for", COUNTS)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def asked(self, n: int, max_tokens: int | None) -> None:
        self._n.observe(n)
        if max_tokens is not None:
            self._max_tokens.observe(max_tokens)

    def rejected(self, reason: str) -> None:
        self._rejections.labels(**self._labels, reason=reason).inc()

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def next_token(self, seconds: float) -> None:
        self._between.observe(seconds)

    def finished(self, builder: OutputBuilder, seconds: float, first_token_s: float | None) -> None:
        self._whole.observe(seconds)
        if first_token_s is not None and builder.num_tokens > 1:
            self._per_token.observe((seconds - first_token_s) / (builder.num_tokens - 1))
        self._end(builder, str(builder.finish_reason))

    def unfinished(self, builder: OutputBuilder, reason: str) -> None:
        self._end(builder, reason)

    def _end(self, builder: OutputBuilder, reason: str) -> None:
        num_prompt = len(builder.request.prompt_token_ids)
        self._num_prompt.observe(num_prompt)
        self._num_answer.observe(builder.num_tokens)
        self._prompt_tokens.inc(num_prompt)
        self._cached_tokens.inc(builder.num_cached_tokens)
        self._generation_tokens.inc(builder.num_tokens)
        self._success.labels(**self._labels, finished_reason=reason).inc()


class _Sampled(Collector):
    """What the engine told last, read at each scrape."""

    def __init__(self, samples: Samples, labels: dict[str, str]) -> None:
        self._samples = samples
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "info": InfoMetricFamily}
        for kind, name, about, value, labels in self._samples():
            names = (*LABELS, *labels)
            if name not in families:
                families[name] = kinds[kind](name, about, labels=() if kind == "info" else names)
            values = [*self._labels.values(), *labels.values()]
            family: Any = families[name]
            if kind == "info":
                family.add_metric((), dict(zip(names, values, strict=True)))
            else:
                family.add_metric(values, value)
        yield from families.values()
