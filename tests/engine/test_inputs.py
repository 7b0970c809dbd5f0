"""StepPlan -> StepInputs: every tensor of a mixed step, its padding, and the bound of the staging buffer."""

import numpy as np
import torch
from padding import PaddingDevice

from hotstart.engine.device import CpuDevice
from hotstart.engine.inputs import InputBuilder
from hotstart.engine.limits import StepLimits
from hotstart.engine.plan import IN_FLIGHT, NO_SLOT, Penalties, Sampling, Span, StepPlan
from hotstart.request import MAX_STOP_TOKEN_IDS

LIMITS = StepLimits(
    max_num_seqs=4,
    max_num_batched_tokens=200,
    max_model_len=100,
    page_size=16,
    chunk_length=64,
    slab_rows=8,
    num_slots=4,
    num_end_ids=2,
    vocab_size=50,
)


def sampling(**changes):
    wish = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": -3, "position": 18} | changes
    return Sampling(**wish)


def mixed_plan():
    decode = Span(1, 17, 1, (IN_FLIGHT,), (4, 2), 0, 0, sampling(banned_ids=(7, 9), logprobs=2))
    fresh = Span(2, 0, 70, tuple(range(100, 170)), (1, 3, 5, 6, 7), NO_SLOT, 2, prompt_logprobs=0, next_prompt_id=99)
    middle = Span(3, 30, 3, (7, 8, 9), (8, 9, 10), 3, 3, sampling(temperature=0.0, position=33), prompt_logprobs=3)
    return StepPlan(0, (decode, fresh, middle))


def test_a_mixed_step_becomes_the_tensors_it_describes():
    built = InputBuilder(LIMITS, CpuDevice()).build(mixed_plan())
    step = built.inputs
    assert (step.num_tokens, step.num_decodes, len(step.token_ids)) == (74, 1, 128)  # padded to its rung
    assert step.token_ids[:3].tolist() == [IN_FLIGHT, 100, 101] and step.token_ids[71:74].tolist() == [7, 8, 9]
    assert step.positions[[0, 1, 70, 71, 73]].tolist() == [17, 0, 69, 30, 32]
    assert step.kv_index[[0, 1, 16, 17, 70]].tolist() == [2 * 16 + 1, 16, 31, 3 * 16, 7 * 16 + 5]
    assert step.kv_index[71:74].tolist() == [9 * 16 + 14, 9 * 16 + 15, 10 * 16]
    assert (step.kv_index[74:] == -1).all() and (step.token_ids[74:] == 0).all()

    assert step.decode.page_table.tolist() == [[4, 2, 0, 0, 0, 0, 0, 0]]
    assert step.decode.context_lens.tolist() == [18] and step.decode.max_context == 18
    assert step.prefill.lengths == (70, 3) and step.prefill.contexts == (70, 33)
    assert step.prefill.cu_seqlens.tolist() == [1, 71, 74] and step.prefill.cu_chunks.tolist() == [0, 2, 3]
    assert step.prefill.chunks.tolist() == [[0, 1, 64, 0], [0, 65, 6, 1], [1, 71, 3, 0]]
    assert step.prefill.read_slots.tolist() == [NO_SLOT, 3] and step.prefill.write_slots.tolist() == [2, 3]
    assert step.prefill.page_table[0].tolist() == [1, 3, 5, 6, 7, 0, 0, 0]


def test_sample_and_prompt_rows_follow_the_plan():
    built = InputBuilder(LIMITS, CpuDevice()).build(mixed_plan())
    rows, prompts = built.samples, built.prompts
    (slab,) = rows.slabs
    assert built.reads_last_tokens and rows.spans == (0, 2) and rows.logprobs == 2 and rows.slots.tolist() == [0, 3]
    assert built.inputs.logit_rows[:2].tolist() == [0, 73]
    assert slab.temperature.tolist() == [np.float32(0.7), 0.0] and slab.top_k.tolist() == [5, 5]
    assert slab.seed.tolist() == [-3, -3] and slab.position.tolist() == [18, 33]
    assert slab.edits.table.tolist() == [[0, 0, 0, 0, 0, 0, 2, 0]] and slab.edits.ids.tolist() == [7, 9]
    assert slab.candidates and not slab.all_greedy
    # 70 positions of the second span, and 2 of the third, whose last token has no prompt token after it
    assert prompts.spans == ((1, 70), (2, 2)) and prompts.logprobs == 3
    assert built.inputs.logit_rows[2:74].tolist() == [*range(1, 71), 71, 72]
    assert prompts.targets[:72].tolist() == [*range(101, 170), 99, 8, 9]


def test_the_last_layer_is_asked_for_the_last_token_of_each_span():
    spans = mixed_plan().spans
    plan = StepPlan(0, tuple(span._replace(prompt_logprobs=None) for span in spans))
    for device, padding in ((CpuDevice(), 0), (PaddingDevice(), 1)):
        step = InputBuilder(LIMITS, device).build(plan).inputs
        ends = step.ends
        assert step.ends_alone and ends.num_tokens == ends.num_decodes == 3 and not ends.prefill.num_sequences
        assert ends.rows.tolist() == [0, 70, 73] + [0] * padding
        assert ends.positions.tolist() == step.positions[[0, 70, 73]].tolist() + [0] * padding
        assert ends.kv_index.tolist() == step.kv_index[[0, 70, 73]].tolist() + [-1] * padding
        assert ends.decode.context_lens.tolist() == [18, 70, 33] + [0] * padding
        assert ends.decode.contexts == (18, 70, 33) and ends.decode.max_context == 70
        tables = torch.cat([step.decode.page_table, step.prefill.page_table])
        assert ends.decode.page_table.tolist() == tables.tolist() + [[0] * 8] * padding
        assert step.logit_rows[:2].tolist() == [0, 2]
        for tensor in (ends.rows, ends.positions, ends.kv_index, ends.decode.context_lens, ends.decode.page_table):
            assert tensor.data_ptr() % 16 == 0


def test_nothing_is_left_out_of_steps_of_answers_and_where_prompts_want_log_probabilities():
    for plan in (mixed_plan(), StepPlan(0, mixed_plan().spans[:1])):
        step = InputBuilder(LIMITS, PaddingDevice()).build(plan).inputs
        assert not step.ends_alone and not len(step.ends.rows) and not step.ends.num_tokens


def test_edits_and_records_are_the_same_on_both_sides():
    """A GPU reads the tensors, the torch forms read the host's copy."""
    penalties = Penalties(3, 4, 1.5, 0.5, 0.25)
    wish = {"bias": ((7, 1.0), (8, -2.0)), "banned_ids": (1,), "allowed": b"\x03\x01"}
    answer = Span(1, 17, 1, (5,), (4, 2), 0, 0, sampling(**wish), penalties=penalties)
    plain = Span(4, 17, 1, (5,), (4, 2), 2, 2, sampling())
    piece = Span(2, 0, 70, (1,) * 70, (1, 3, 5, 6, 7), NO_SLOT, 2, penalties=penalties._replace(slot=1))
    builder = InputBuilder(LIMITS, CpuDevice())
    for spans in ((piece,), (plain, answer, piece), (answer,)):
        built = builder.build(StepPlan(0, spans))
        records = built.samples.records
        starts = {(span,): row for span, row in zip(spans, (0, 1, 2), strict=False)}
        assert records.table.tolist() == [list(row) for row in records.host]
        assert records.host == tuple((s.penalties.slot, s.start, starts[s,], s.length) for s in spans if s.penalties)
        if answer not in spans:
            assert built.samples.slabs == ()
            continue
        (slab,) = built.samples.slabs
        edits, at = slab.edits, spans.index(answer)
        assert edits.table.tolist() == [[at, 3, 4, 18, 0, 2, 3, 0]] == [list(row) for row in edits.host]
        assert edits.penalties.tolist() == [[1.5, 0.5, 0.25, 0.0]] and edits.ids.tolist() == [7, 8, 1]
        assert edits.values[:2].tolist() == [1.0, -2.0] and edits.allowed.rows.tolist() == [at] == [*edits.allowed.host]
        assert edits.allowed.bits.view(torch.uint8)[0, :3].tolist() == [3, 1, 0] and slab.grammar is None
        for tensor in (edits.table, edits.penalties, edits.ids, edits.values, edits.allowed.bits, records.table):
            assert tensor.data_ptr() % 16 == 0


def test_every_section_is_aligned_and_the_largest_step_fits():
    builder = InputBuilder(LIMITS, CpuDevice())
    banned = tuple(range(MAX_STOP_TOKEN_IDS + 2))
    long = Span(0, 3, 97, tuple(range(97)), tuple(range(7)), 0, 0, sampling(banned_ids=banned), 20, 1)
    short = Span(1, 3, 34, tuple(range(34)), tuple(range(3)), 0, 0, sampling(banned_ids=banned), 20, 1)
    step = builder.build(StepPlan(0, (long, short, short, short))).inputs
    tensors = [step.kv_index, step.positions, step.logit_rows, step.prefill.chunks, step.prefill.page_table]
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors)
    assert step.kv_index.dtype == torch.int64 and step.prefill.cu_seqlens.dtype == torch.int32
