"""The tasks of the shipped checkpoint, and what its folder says about itself."""

import json
from pathlib import Path

from tasks import MAX_SIZE, TASKS, chat_text, draw, is_held_out, score

from hotstart.text.chat import read_chat_template
from hotstart.text.tokenizer import Tokenizer

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "tiny-qwen3.5"


def test_draws_are_repeatable_held_out_and_distinct():
    examples = draw(80, seed=3)
    assert examples == draw(80, seed=3) != draw(80, seed=4)
    assert all(is_held_out(e) and 1 <= e.size <= MAX_SIZE[e.task] for e in examples)
    assert len({e.prompt for e in examples}) == 80
    assert {e.task for e in examples} == set(TASKS)


def test_score_counts_exact_replies_only():
    examples = draw(8, seed=3)
    replies = [e.answer for e in examples]
    assert score(examples, replies) == dict.fromkeys([*TASKS, "all"], 1.0)
    replies[0] += " "
    assert score(examples, replies)[examples[0].task] == 0.5
    assert score(examples, replies)["all"] == 0.875


def test_the_folder_is_small_and_its_readme_tells_the_recorded_score():
    assert sum(f.stat().st_size for f in CHECKPOINT.iterdir()) <= 5_000_000
    recorded = json.loads((CHECKPOINT / "score.json").read_text())["transformers"]["exact"]
    row = "| " + " | ".join(f"{recorded[name]:.1%}".replace("%", " %") for name in (*TASKS, "all")) + " |"
    assert row in (CHECKPOINT / "README.md").read_text()


def test_its_template_and_tokenizer_give_the_text_it_was_trained_on():
    tokenizer = Tokenizer(CHECKPOINT)
    template = read_chat_template(CHECKPOINT, tokenizer.special_tokens)
    for example in draw(12, seed=5):
        text = chat_text(example.prompt)
        assert template.render([{"role": "user", "content": example.prompt}]) == text
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    assert [tokenizer.eos_token_id] == tokenizer.encode("<|im_end|>")
