"""Pages and slots that a step does not own, in engines that pad and overlap as on a GPU, and do not."""

import pytest
from foreign import fill_with_nan, watch_foreign_memory
from padding import PaddingDevice
from tiny import VOCAB

from hotstart.engine import startup
from hotstart.engine.device import CpuDevice
from hotstart.request import Request, SamplingParams


def serve(engine):
    """Five requests, of which two come while others answer; their tokens."""
    found, lengths = {}, [40, 17, 64, 1, 3]
    while lengths or engine.has_work:
        if lengths and (len(lengths) > 2 or engine.num_running < 3):
            length = lengths.pop(0)
            params = SamplingParams(temperature=0.0, max_tokens=4 + length % 5, ignore_eos=True)
            engine.add(Request(f"r{length}", tuple(i * 7 % VOCAB for i in range(length)), params, 0.0))
        for event in engine.step():
            assert event.error is None
            found[event.request_id] = found.get(event.request_id, ()) + event.token_ids
    return found


@pytest.mark.parametrize("device", [CpuDevice, PaddingDevice])
@pytest.mark.parametrize("family", ["dense", "moe"])
def test_a_step_reads_and_writes_what_is_its_own(family, device, start_engine, monkeypatch):
    monkeypatch.setattr(startup, "CpuDevice", lambda threads: device())
    engine = start_engine(family)
    expected = serve(engine)
    fill_with_nan(engine)
    steps = watch_foreign_memory(engine, monkeypatch)
    assert serve(engine) == expected
    assert {(decodes > 0, decodes < spans) for decodes, spans in steps} == {(True, True), (True, False), (False, True)}
