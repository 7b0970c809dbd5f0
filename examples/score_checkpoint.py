"""Score a checkpoint on held-out tasks, greedily, in float32 on the CPU.

    python examples/score_checkpoint.py checkpoints/tiny-qwen3.5 --engine transformers
    python examples/score_checkpoint.py checkpoints/tiny-qwen3.5 --engine hotstart

Both engines get the same prompts, in the same order.  `--write` records the score in the folder's score.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tasks import chat_text, draw, score

SEED = 7
MAX_TOKENS = 80


def replies_of_transformers(folder: Path, prompts: Sequence[str], rows: int = 50) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    replies: list[str] = []
    for first in range(0, len(prompts), rows):
        inputs = tokenizer(list(prompts[first : first + rows]), return_tensors="pt", padding=True)
        width = inputs["input_ids"].shape[1]
        outputs = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        replies += tokenizer.batch_decode(outputs[:, width:], skip_special_tokens=True)
    return replies


def replies_of_hotstart(folder: Path, prompts: Sequence[str]) -> list[str]:
    from hotstart import LLM, SamplingParams

    with LLM(model=folder, dtype="float32", max_model_len=512) as llm:
        outputs = llm.generate(list(prompts), SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS))
    return [output.outputs[0].text for output in outputs]


ENGINES = {"transformers": replies_of_transformers, "hotstart": replies_of_hotstart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", choices=sorted(ENGINES), default="hotstart")
    parser.add_argument("--num", type=int, default=400, help="prompts, tasks in turn")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--write", action="store_true", help="record the score in score.json")
    arguments = parser.parse_args()

    examples = draw(arguments.num, arguments.seed)
    replies = ENGINES[arguments.engine](arguments.folder, [chat_text(e.prompt) for e in examples])
    scores = score(examples, replies)
    print(f"{arguments.engine}: " + "  ".join(f"{name} {value:.1%}" for name, value in scores.items()))
    for example, reply in zip(examples, replies, strict=True):
        if reply != example.answer:
            print(f"  {example.prompt!r}\n    said {reply!r}, right is {example.answer!r}")
    if arguments.write:
        file = arguments.folder / "score.json"
        recorded = json.loads(file.read_text()) if file.exists() else {}
        recorded[arguments.engine] = {"prompts": arguments.num, "seed": arguments.seed, "exact": scores}
        file.write_text(json.dumps(recorded, indent=2) + "\n")


if __name__ == "__main__":
    main()
