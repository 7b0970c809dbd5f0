"""Keep beside each other what `hotstart plan --gpu` foretells and what start-up found, for shapes on a real card.

python -m bench.plan_check ROLE:FILE ...        files of `hotstart bench`, each fitted on ("fit") or not ("check")
"""

import json
import sys
from pathlib import Path
from typing import Any

from bench.measure import RESULTS
from bench.shapes import model_config
from hotstart.config.engine import EngineConfig
from hotstart.engine.predict import predict
from hotstart.kernels.gpus import parse_gpu


def row(role: str, found: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in found["options"].items() if name != "jit_monitor_mode"}
    plan = predict(EngineConfig(model="x", **options), model_config(found["model"]), "x", parse_gpu("h200")).expected
    assert plan is not None
    theirs = {line.name: line.num_bytes for line in plan.lines}
    lines = [
        {"name": line["name"], "foretold": theirs[line["name"]], "found": line["num_bytes"]}
        for line in found["plan"]["lines"]
        if line["name"] not in ("reserve", "unused")
    ]
    return {
        "model": found["model"],
        "role": role,
        "options": options,
        "lines": lines,
        "pages": {"foretold": plan.num_pages, "found": found["plan"]["num_pages"]},
        "slots": {"foretold": plan.num_slots, "found": found["plan"]["num_slots"]},
        "facts": {name: found[name] for name in ("command", "date", "device", "cuda", "versions")},
    }


def main() -> None:
    pairs = (argument.split(":", 1) for argument in sys.argv[1:])
    rows = [row(role, json.loads(Path(path).read_text())) for role, path in pairs]
    (RESULTS / "plan_check.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
