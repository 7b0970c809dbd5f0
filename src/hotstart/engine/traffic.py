"""Random traffic: requests of all lengths and ways to sample go through an engine, until it has made so many steps."""

import random

from hotstart.engine.engine import Engine
from hotstart.request import Request, SamplingParams, StructuredOutputsParams

__all__ = ["random_traffic"]


def random_traffic(engine: Engine, num_steps: int, seed: int = 0) -> None:
    """Requests come in bursts and one by one; some are aborted.  Where pages are few, the first ones have to give way.

    Raises the error of the first request that fails.
    """
    dice = random.Random(seed)
    ids: list[str] = []
    before = engine.num_steps
    for length in (engine.limits.max_sequence_length, *(2,) * engine.limits.max_num_seqs):
        ids.append(f"first-{len(ids)}")
        params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
        engine.add(Request(ids[-1], (0,) * max(1, length - 42), params, arrival_time=0.0))
    while engine.num_steps - before < num_steps:
        if not engine.has_work or dice.random() < 0.3:
            for _ in range(dice.choice((1, 1, 1, 2, engine.limits.max_num_seqs))):
                ids.append(f"random-{len(ids)}")
                engine.add(_request(dice, ids[-1], engine))
        if dice.random() < 0.05:
            engine.abort(dice.choice(ids))
        for event in engine.step():
            if event.error is not None:
                raise event.error
    engine.check()


def _request(dice: random.Random, id: str, engine: Engine) -> Request:
    limits = engine.limits
    # As many short prompts as long ones: an edge sits at each multiple of a chunk, of a page and of a rung.
    chunk = limits.chunk_length
    length = dice.choice((1, 2, 3, chunk, chunk + 1, int(2 ** dice.uniform(0, 14))))
    edited = dice.random() < 0.3
    shape = StructuredOutputsParams(regex=".*") if engine.can_guide and dice.random() < 0.1 else None
    params = SamplingParams(
        temperature=dice.choice((0.0, 0.0, 0.8)),
        top_k=dice.choice((0, 0, 5)),
        top_p=dice.choice((1.0, 1.0, 0.9)),
        min_p=dice.choice((0.0, 0.1)) if edited else 0.0,
        repetition_penalty=dice.choice((1.0, 1.2)) if edited else 1.0,
        presence_penalty=dice.choice((0.0, 0.5)) if edited else 0.0,
        logit_bias={1: 2.0} if edited and dice.random() < 0.3 else None,
        bad_word_ids=((2,), (3, 4)) if edited and dice.random() < 0.3 else (),
        allowed_token_ids=(0, 1, 5) if edited and not shape and dice.random() < 0.2 else None,
        structured_outputs=shape,
        seed=dice.randrange(100),
        max_tokens=dice.choice((1, 2, 5, 40)),
        min_tokens=dice.choice((0, 0, 1)),
        ignore_eos=dice.random() < 0.8,
        logprobs=dice.choice((None,) * 6 + (0, 3)),
        prompt_logprobs=dice.choice((None,) * 9 + (2,)),
    )
    return Request(id, (0,) * max(1, min(length, limits.max_sequence_length - 42)), params, arrival_time=0.0)
