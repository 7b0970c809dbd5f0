"""A captured step serves any later one of its key: launched again, the same calls take all they need from the image."""

import json

import pytest
import torch
from padding import PaddingDevice
from tiny import CONFIGS, VOCAB

from hotstart.cache.tensors import CacheTensors
from hotstart.config.model import read_model_config
from hotstart.engine.inputs import GraphKey, InputBuilder
from hotstart.engine.limits import StepLimits
from hotstart.engine.plan import Sampling, Span, StepPlan
from hotstart.engine.rehearsal import answer_plan, prompt_plan
from hotstart.engine.runner import Runner
from hotstart.engine.sampler import Sampler
from hotstart.engine.scheduler import Scheduler, SchedulerLimits
from hotstart.kernels.backends import ops_for, replays, replays_prompts
from hotstart.models import build_model
from hotstart.models.weights import fill_random
from hotstart.request import Request, SamplingParams

SIZES = {"max_num_seqs": 3, "max_num_batched_tokens": 32, "max_model_len": 24, "page_size": 16, "chunk_length": 64}


class Replays:
    """In place of CUDA graphs: the captured call, with the tensors and the host integers it was captured with."""

    def __init__(self):
        self.calls, self.draws = {}, {}
        self.num_replays = self.num_drawn = 0

    def capture(self, size, run, draw):
        self.calls[size], self.draws[size] = run, draw
        self.num_rows = {**getattr(self, "num_rows", {}), size: len(draw(run()))}

    def replay(self, size):
        if size not in self.calls:
            return None
        self.num_replays += 1
        self.hidden = self.calls[size]()
        return self.hidden

    def replay_draw(self, size, num_rows):
        if num_rows != self.num_rows[size]:
            return None
        self.num_drawn += 1
        return self.draws[size](self.hidden)


EDITED = {
    "temperature": [0.0] * 3,
    "logprobs": [1] * 3,
    "repetition_penalty": [1.0, 1.5, 1.2],
    "frequency_penalty": [0.0, 0.5, 2.0],
    "logit_bias": [None, {5: 1.0}, None],
    "allowed_token_ids": [None, None, (1, 2, 3, 50, 51)],
}
DRAWN = {"temperature": [0.0, 0.9, 2.0], "top_k": [0, 5, 0], "top_p": [1.0, 1.0, 0.9], "seed": [1, 2, 3]}


def make_runner(config, ops, limits, graphs):
    """Of a model of random weights, on six pages and three slots; and its inputs."""
    device = PaddingDevice()
    model = build_model(config, ops, torch.float32, torch.float32, limits.max_model_len)
    fill_random(model, 0, lambda shape, dtype: torch.empty(shape, dtype=dtype))
    inputs = InputBuilder(limits, device)
    cache = CacheTensors(model.layout(16), 6, 3, lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    sampler = Sampler(model.logits, ops, limits, device)
    return Runner(model, 0, inputs, sampler, device.step_scope, cache, graphs), inputs


def serve(folder, graphs, ways):
    """Answers of three requests that end one after the other."""
    config = read_model_config(folder)
    limits = StepLimits(**SIZES, slab_rows=4, num_slots=3, num_end_ids=0, vocab_size=VOCAB)
    ops = ops_for("triton" if graphs else "torch", "torch")
    assert replays(ops) == (graphs is not None)
    runner, inputs = make_runner(config, ops, limits, graphs)
    if graphs:
        for size in inputs.decode_rungs:
            runner.capture(answer_plan(size, limits))
    scheduler = Scheduler(SchedulerLimits(**SIZES, num_pages=6, num_slots=3))
    for i in range(3):
        params = SamplingParams(max_tokens=3 + 2 * i, ignore_eos=True, **{name: each[i] for name, each in ways.items()})
        scheduler.add(Request(f"r{i}", tuple(range(1 + i, 8 + i)), params, 0.0))
    tokens = {}
    while scheduler.has_work:
        plan = scheduler.plan()
        for event in scheduler.apply(plan, runner.launch(plan).wait()):
            mine = tokens.setdefault(event.request_id, [])
            mine.extend(event.token_ids)
            mine.extend(round(p.logprob, 3) for p in event.logprobs)
    return tokens


@pytest.mark.parametrize(("ways", "num_drawn"), [(EDITED, 0), (DRAWN, 6)], ids=["edited", "drawn"])
def test_replayed_steps_answer_as_the_torch_ops_do(ways, num_drawn, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["dense"], "num_hidden_layers": 4}))
    graphs = Replays()
    assert serve(tmp_path, graphs, ways) == serve(tmp_path, None, ways)
    assert graphs.num_drawn == num_drawn
    assert graphs.num_replays == 6 and set(graphs.calls) == {GraphKey(False, size) for size in (1, 2, 3)}


def test_replayed_prompts_answer_as_the_torch_ops_do(tmp_path):
    """Of several lengths, and a piece that goes on where one of them ends."""
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["dense"], "num_hidden_layers": 4}))
    config = read_model_config(tmp_path)
    limits = StepLimits(
        **{**SIZES, "max_model_len": 64, "chunk_length": 16}, slab_rows=4, num_slots=3, num_end_ids=0, vocab_size=VOCAB
    )
    wish = Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0, position=6, logprobs=2)
    spans = [
        Span(0, 0, 20, tuple(range(20)), (4, 2), -1, 0, wish),
        Span(1, 0, 32, tuple(range(32)), (1, 0), -1, 2, wish),
        Span(0, 20, 29, tuple(range(40, 69)), (4, 2, 5, 3), 0, 1, wish),
    ]
    found = []
    for backend, graphs in (("torch", None), ("triton", Replays())):
        ops = ops_for(backend)
        assert replays_prompts(ops) == (graphs is not None)
        runner, _ = make_runner(config, ops, limits, graphs)
        if graphs:
            runner.capture(prompt_plan(32, limits))
        results = [runner.launch(StepPlan(i, (span,))).wait().spans[0] for i, span in enumerate(spans)]
        found.append([(one.token_id, round(one.logprobs.logprob, 3)) for one in results])
    assert graphs.num_replays == 3 and list(graphs.calls) == [GraphKey(True, 32)]
    assert found[0] == found[1]
