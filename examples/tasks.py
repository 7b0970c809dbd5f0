"""Small tasks whose answers can be checked: the shipped checkpoint is trained on them, the demo and the tests ask them.

Plain Python, seeded: the same seed gives the same prompts everywhere.  `size` counts what makes a prompt long: pairs
to recall, words to copy, digits to sort, digits of each summand.
"""

import random
import string
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["MAX_SIZE", "TASKS", "Example", "chat_text", "draw", "is_held_out", "make_example", "score"]

MAX_SIZE = {"recall": 32, "copy": 12, "sort": 16, "add": 3}
TASKS = tuple(MAX_SIZE)

# Several bytes each in UTF-8, so that copying exercises byte-level tokens and incremental decoding.
RARE_CHARACTERS = "äöüßéñçåλπЖя中文日😀🚀"
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Example:
    task: str
    size: int
    prompt: str  # what the user says
    answer: str  # the one right reply


def chat_text(prompt: str) -> str:
    """The prompt as one user turn, ready for the reply: what the checkpoint's chat template renders."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def make_example(task: str, size: int, rng: random.Random) -> Example:
    assert 1 <= size <= MAX_SIZE[task], f"{task} is made for sizes 1 to {MAX_SIZE[task]}, not {size}"
    prompt, answer = _MAKERS[task](size, rng)
    return Example(task, size, prompt, answer)


def is_held_out(example: Example) -> bool:
    """Whether training never shows this prompt; a property of its text, so it holds for every seed."""
    return zlib.crc32(example.prompt.encode()) % HELD_OUT_ONE_IN == 0


def draw(num_examples: int, seed: int, tasks: Sequence[str] = TASKS) -> list[Example]:
    """Held-out examples, no two alike, tasks in turn, sizes drawn uniformly (the smallest sizes have few examples)."""
    rng = random.Random(seed)
    examples: dict[str, Example] = {}
    while len(examples) < num_examples:
        task = tasks[len(examples) % len(tasks)]
        example = make_example(task, rng.randint(1, MAX_SIZE[task]), rng)
        if is_held_out(example):
            examples.setdefault(example.prompt, example)
    return list(examples.values())


def score(examples: Sequence[Example], replies: Sequence[str]) -> dict[str, float]:
    """Share of replies that equal the answer exactly, by task and over `all`."""
    right = [(example.task, reply == example.answer) for example, reply in zip(examples, replies, strict=True)]
    by_task = {task: [hit for name, hit in right if name == task] for task, _ in right}
    return {task: sum(hits) / len(hits) for task, hits in by_task.items()} | {
        "all": sum(h for _, h in right) / len(right)
    }


def _recall(size: int, rng: random.Random) -> tuple[str, str]:
    keys = rng.sample(string.ascii_letters, size)
    values = [f"{rng.randrange(100):02d}" for _ in keys]
    asked = rng.randrange(size)
    pairs = ", ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
    return f"Recall: {pairs}; {keys[asked]}?", values[asked]


def _copy(size: int, rng: random.Random) -> tuple[str, str]:
    text = " ".join(_word(rng) for _ in range(size))
    return f"Copy: {text}", text


def _word(rng: random.Random) -> str:
    letters = rng.choices(string.ascii_lowercase, k=rng.randint(1, 5))
    if rng.random() < 0.1:
        letters[rng.randrange(len(letters))] = rng.choice(RARE_CHARACTERS)
    return "".join(letters)


def _sort(size: int, rng: random.Random) -> tuple[str, str]:
    digits = rng.choices(string.digits, k=size)
    return f"Sort: {''.join(digits)}", "".join(sorted(digits))


def _add(size: int, rng: random.Random) -> tuple[str, str]:
    a, b = rng.randrange(10**size), rng.randrange(10**size)
    return f"Add: {a} + {b}", str(a + b)


_MAKERS: dict[str, Callable[[int, random.Random], tuple[str, str]]] = {
    "recall": _recall,
    "copy": _copy,
    "sort": _sort,
    "add": _add,
}
