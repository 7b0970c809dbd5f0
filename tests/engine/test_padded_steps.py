"""What a GPU does to steps, done on a CPU: padding, another ladder of sizes, snapshots; answers stay the same."""

import random
from dataclasses import replace

import pytest
from padding import PaddingDevice
from tiny import VOCAB

from hotstart.engine import startup
from hotstart.engine.device import CpuDevice
from hotstart.engine.inputs import GraphKey, InputBuilder
from hotstart.engine.limits import StepLimits
from hotstart.engine.plan import Sampling, Span, StepPlan
from hotstart.request import Request, SamplingParams

LIMITS = StepLimits(
    max_num_seqs=20,
    max_num_batched_tokens=64,
    max_model_len=96,
    page_size=16,
    chunk_length=64,
    slab_rows=4,
    num_slots=20,
    num_end_ids=1,
    vocab_size=50,
)


def requests(seed):
    dice = random.Random(seed)
    for i in range(40):
        params = SamplingParams(
            temperature=dice.choice((0.0, 0.8)), top_k=dice.choice((0, 5)), top_p=dice.choice((1.0, 0.9)), seed=i,
            max_tokens=dice.choice((1, 5, 20)), ignore_eos=True, logprobs=dice.choice((None, 2)),
            prompt_logprobs=dice.choice((None, None, 1)),
        )  # fmt: skip
        yield Request(f"r{i}", tuple(dice.choices(range(VOCAB), k=dice.choice((1, 2, 30, 64, 76)))), params, 0.0)


def serve(engine):
    for request in requests(5):
        engine.add(request)
    tokens, prompts = {}, {}
    while engine.has_work:
        for event in engine.step():
            assert event.error is None
            tokens[event.request_id] = tokens.get(event.request_id, ()) + event.token_ids
            if event.prompt_logprobs:
                prompts[event.request_id] = [
                    p and (p.token_id, pytest.approx(p.logprob, abs=1e-3)) for p in event.prompt_logprobs
                ]
    engine.check()
    assert engine.late_events == () and engine.growth.arena_bytes == 0
    return tokens, prompts


@pytest.mark.parametrize("wishes", [{}, {"enable_prefix_caching": True}], ids=str)
def test_padding_changes_no_answer(wishes, start_engine, monkeypatch):
    found = []
    for device in (CpuDevice, PaddingDevice):
        monkeypatch.setattr(startup, "CpuDevice", device)
        engine = start_engine(max_num_seqs=12, **wishes)
        assert engine.memory_plan.num_slots == (24 if wishes else 12)
        found.append(serve(engine))
        engine.close()
    assert found[0][0] == found[1][0]
    for name, expected in found[0][1].items():
        assert [p and (p[0], p[1].expected) for p in found[1][1][name]] == expected


def test_a_step_of_answers_lies_in_the_image_as_its_rung_says_whoever_is_in_it():
    inputs = InputBuilder(LIMITS, PaddingDevice())

    def addresses(count, **sampling):
        wish = Sampling(**{"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0, "position": 6, **sampling})
        spans = tuple(Span(i, 5, 1, (7,), (i,), i, i, wish) for i in range(count))
        built = inputs.build(StepPlan(0, spans))
        step, decode = built.inputs, built.inputs.decode
        assert built.graph_key == GraphKey(False, 16) and step.num_tokens == decode.num_sequences == count
        assert decode.write_slots.tolist() == [*range(count), *[-1] * (16 - count)] == decode.read_slots.tolist()
        assert decode.context_lens.tolist() == [6] * count + [0] * (16 - count)
        assert step.kv_index.tolist() == [i * 16 + 5 for i in range(count)] + [-1] * (16 - count)
        tensors = (step.token_ids, step.positions, step.kv_index, decode.page_table, decode.context_lens)
        return [t.data_ptr() for t in (*tensors, decode.read_slots, decode.write_slots)], [t.shape for t in tensors]

    assert addresses(16) == addresses(9) == addresses(12, temperature=0.5, banned_ids=(1, 2, 3), logprobs=2)


def test_a_prompt_alone_lies_in_the_image_as_its_rung_says_whatever_its_length():
    inputs = InputBuilder(replace(LIMITS, max_num_batched_tokens=300, max_model_len=400), PaddingDevice())
    wish = Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0, position=6)

    def build(*lengths, start=0, **wishes):
        spans = (
            Span(i, start, n, (7,) * n, tuple(range(25)), i if start else -1, i, wish, **wishes)
            for i, n in enumerate(lengths)
        )
        return inputs.build(StepPlan(0, tuple(spans)))

    def addresses(built):
        step, prefill, ends = built.inputs, built.inputs.prefill, built.inputs.ends
        tensors = [getattr(prefill, name) for name in TENSORS]
        tensors += [step.token_ids, step.positions, step.kv_index, ends.rows, ends.kv_index, ends.decode.page_table]
        return [(t.data_ptr(), t.shape) for t in (*tensors, ends.decode.context_lens)]

    assert build(65).graph_key == GraphKey(True, 128)
    assert addresses(build(65)) == addresses(build(128)) == addresses(build(100, start=31))
    # Another prompt beside it, an answer, log-probabilities of its tokens: such steps are launched one by one.
    assert (
        [build(*n).graph_key for n in ((60, 60), (1, 100))]
        == [None, None]
        == [build(70, prompt_logprobs=0).graph_key] * 2
    )
    assert inputs.prompt_rungs == (64, 128, 192, 256, 300)
    coarse = InputBuilder(replace(LIMITS, chunk_length=16), PaddingDevice())
    plans = [StepPlan(0, (Span(0, 0, n, (7,) * n, (0, 1, 2, 3), -1, 0, wish),)) for n in (48, 49)]
    assert [coarse.build(plan).graph_key for plan in plans] == [None, GraphKey(True, 64)]  # one chunk less, or as many


TENSORS = ("cu_seqlens", "context_lens", "page_table", "read_slots", "write_slots", "chunks", "cu_chunks")
