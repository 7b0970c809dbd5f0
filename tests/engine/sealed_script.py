"""Start an engine, say so, serve random requests, and print what is new after the seal (for test_first_use.py)."""

import random
import sys

from hotstart.config.engine import EngineConfig
from hotstart.engine.startup import start
from hotstart.request import Request, SamplingParams, StructuredOutputsParams

engine = start(EngineConfig(model=sys.argv[1], dtype="bfloat16", num_threads=1, jit_monitor_mode="error"))
before = set(sys.modules)
print("sealed", flush=True)
dice = random.Random(5)
SHAPES = (
    StructuredOutputsParams(json={"type": "object", "properties": {"x": {"type": "number"}}}),
    StructuredOutputsParams(regex="[a-z]+"),
    StructuredOutputsParams(grammar='root ::= "a" | "b"'),
    StructuredOutputsParams(choice=("c", "d"), after="a"),
)
for index in range(60):
    params = SamplingParams(
        temperature=dice.choice((0.0, 1.0)),
        top_k=dice.choice((0, 5)),
        max_tokens=dice.randrange(1, 9),
        logprobs=dice.choice((None, 3)),
        prompt_logprobs=dice.choice((None, 1)),
        min_p=dice.choice((0.0, 0.1)),
        repetition_penalty=dice.choice((1.0, 1.2)),
        logit_bias=dice.choice((None, {7: 1.0})),
        **dice.choice(({}, {"allowed_token_ids": (1, 2, 3)}, {"structured_outputs": dice.choice(SHAPES)})),
    )
    prompt = tuple(dice.choices(range(engine.vocab_size), k=int(2 ** dice.uniform(0, 8.9))))
    engine.add(Request(f"r{index}", prompt, params, 0.0))
    for _ in range(dice.randrange(4)):
        engine.step()
while engine.has_work:
    engine.step()
print("new modules:", *sorted(set(sys.modules) - before), flush=True)
