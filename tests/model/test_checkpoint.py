"""The shipped checkpoint gives the same replies, and so the same score, through hotstart and through transformers."""

import json
from pathlib import Path

from score_checkpoint import replies_of_hotstart, replies_of_transformers
from tasks import chat_text, draw, score

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "tiny-qwen3.5"


def test_greedy_replies_are_the_same_and_mostly_right():
    examples = draw(40, seed=11)
    prompts = [chat_text(example.prompt) for example in examples]
    replies = replies_of_hotstart(CHECKPOINT, prompts)
    assert replies == replies_of_transformers(CHECKPOINT, prompts)
    assert score(examples, replies)["all"] >= 0.95


def test_recorded_scores_are_equal():
    recorded = json.loads((CHECKPOINT / "score.json").read_text())
    assert recorded["hotstart"] == recorded["transformers"]
