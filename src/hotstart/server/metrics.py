"""What the server counts.  Names that vLLM has are vLLM's, so that its dashboards show them; `hotstart:` is our own."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from hotstart.engine.outputs import OutputBuilder
from hotstart.server.histogram import Histogram

__all__ = ["CONTENT_TYPE", "Metrics", "Moments", "Sample"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RECENT = 64  # requests whose times the page looks at
REASONS = ("stop", "length", "abort", "error")

# Edges of vLLM's buckets: dashboards draw quantiles from them.
TIME_TO_FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
WHOLE = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
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


class Moments(NamedTuple):
    """Of one answer, on the clock that both processes share (time.monotonic); None is "never"."""

    arrived: float
    admitted: float | None  # its first step was planned
    first_token: float | None
    ended: float


class Metrics:
    def __init__(self, model_name: str, samples: Samples = tuple) -> None:
        self._labels = {"model_name": model_name, "engine": "0"}
        self._samples = samples
        self._histograms: list[Histogram] = []
        self._registry = CollectorRegistry()
        self._registry.register(_Collected(self._families))
        self.num_prompt_tokens = self.num_generation_tokens = self.num_cached_tokens = self.num_queried_tokens = 0
        self.ended = dict.fromkeys(REASONS, 0)
        self.refused: dict[str, int] = {}
        self.very_first: float | None = None  # seconds to the first token that any client got
        self.recent_first: deque[float] = deque(maxlen=RECENT)

        def histogram(name: str, about: str, edges: Iterable[float]) -> Histogram:
            self._histograms.append(Histogram(f"vllm:{name}", about, tuple(edges)))
            return self._histograms[-1]

        self.first = histogram(
            "time_to_first_token_seconds", "from a request's arrival to its first token", TIME_TO_FIRST
        )
        self.between = histogram("inter_token_latency_seconds", "between two tokens of an answer", BETWEEN)
        self._per_token = histogram("request_time_per_output_token_seconds", "mean between an answer's tokens", BETWEEN)
        self._whole = histogram("e2e_request_latency_seconds", "from a request's arrival to its end", WHOLE)
        self._queue = histogram("request_queue_time_seconds", "from a request's arrival to its first step", WHOLE)
        self._prefill = histogram("request_prefill_time_seconds", "from the first step to the first token", WHOLE)
        self._decode = histogram("request_decode_time_seconds", "from the first token to the last", WHOLE)
        self._inference = histogram("request_inference_time_seconds", "from the first step to the last token", WHOLE)
        self._num_prompt = histogram("request_prompt_tokens", "tokens of a prompt", COUNTS)
        self._num_answer = histogram("request_generation_tokens", "tokens of an answer", COUNTS)
        self._longest = histogram("request_max_num_generation_tokens", "tokens of a request's longest answer", COUNTS)
        self._n = histogram("request_params_n", "answers asked for", CHOICES)
        self._max_tokens = histogram("request_params_max_tokens", "max_tokens asked for", COUNTS)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def asked(self, n: int, max_tokens: int | None) -> None:
        self._n.observe(n)
        if max_tokens is not None:
            self._max_tokens.observe(max_tokens)

    def rejected(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def first_token(self, seconds: float, num_prompt: int, num_cached: int, looked_up: bool) -> None:
        self.first.observe(seconds)
        self.recent_first.append(seconds)
        if self.very_first is None:
            self.very_first = seconds
        self.num_prompt_tokens += num_prompt
        self.num_cached_tokens += num_cached
        self.num_queried_tokens += num_prompt * looked_up

    def ended_answer(self, builder: OutputBuilder, moments: Moments, reason: str) -> None:
        arrived, admitted, first, ended = moments
        self.ended[reason] = self.ended.get(reason, 0) + 1
        self._num_prompt.observe(len(builder.request.prompt_token_ids))
        self._num_answer.observe(builder.num_tokens)
        if admitted is not None:
            self._queue.observe(max(admitted - arrived, 0.0))
        if reason not in ("stop", "length"):
            return  # it took as long as whoever ended it let it
        self._whole.observe(ended - arrived)
        if first is not None:
            self._decode.observe(ended - first)
            if builder.num_tokens > 1:
                self._per_token.observe((ended - first) / (builder.num_tokens - 1))
            if admitted is not None:
                self._prefill.observe(first - admitted)
                self._inference.observe(ended - admitted)

    def ended_request(self, num_longest: int) -> None:
        self._longest.observe(num_longest)

    def _families(self) -> Iterator[Metric]:
        yield from _families((*self._counted(), *self._samples()), self._labels)
        yield from (histogram.family(self._labels) for histogram in self._histograms)

    def _counted(self) -> Iterator[Sample]:
        cached = self.num_cached_tokens
        yield Sample("counter", "vllm:prompt_tokens", "tokens of prompts", self.num_prompt_tokens)
        yield Sample("counter", "vllm:generation_tokens", "tokens of answers", self.num_generation_tokens)
        yield Sample("counter", "vllm:prompt_tokens_cached", "tokens of prompts that the prefix cache spared", cached)
        yield Sample("counter", "vllm:prefix_cache_queries", "tokens looked up there", self.num_queried_tokens)
        yield Sample("counter", "vllm:prefix_cache_hits", "tokens found there", cached)
        about = "answers that ended, by how they did"
        for reason, count in self.ended.items():
            yield Sample("counter", "vllm:request_success", about, count, {"finished_reason": reason})
        for reason, count in (self.refused or {"queue_full": 0}).items():
            about = "requests that were refused, by why"
            yield Sample("counter", "vllm:admission_rejections", about, count, {"reason": reason})


class _Collected(Collector):
    """Made anew at each scrape."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families()


def _families(samples: Iterable[Sample], labels: Mapping[str, str]) -> Iterator[Metric]:
    families: dict[str, Metric] = {}
    kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "info": InfoMetricFamily}
    for kind, name, about, value, more in samples:
        names = (*labels, *more)
        if name not in families:
            families[name] = kinds[kind](name, about, labels=() if kind == "info" else names)
        values = [*labels.values(), *more.values()]
        family: Any = families[name]
        if kind == "info":
            family.add_metric((), dict(zip(names, values, strict=True)))
        else:
            family.add_metric(values, value)
    yield from families.values()
