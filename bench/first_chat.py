"""The first chat request after /ready against the median of the next twenty, each kind in nine fresh servers.

python -m bench.first_chat
"""

import argparse
import http.client
import json
import random
import statistics
import time
from typing import Any

from bench.measure import write_result
from bench.server_cpu import server, status

NUM_SERVERS, NUM_LATER = 9, 20
WORDS, ANSWER = 24, 16
PAUSE_S = 0.05  # between two requests: whoever comes first comes to a server that rests
TARGET = 1.1
KINDS = ("chat", "json_schema")


def chat(port: int, rng: random.Random, kind: str) -> tuple[float, float]:
    """Seconds to the first event of a stream, and to its end, over a connection of its own."""
    words = " ".join("".join(rng.choices("abcdefgh", k=4)) for _ in range(WORDS))
    wishes: dict[str, Any] = {"max_tokens": ANSWER, "temperature": 0, "stream": True}
    if kind == "json_schema":
        # Each has a schema of its own: one that was seen before is not compiled again.
        name = "".join(rng.choices("abcdefgh", k=8))
        schema = {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}
        wishes["response_format"] = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
    else:
        wishes["ignore_eos"] = True
    body = json.dumps({"messages": [{"role": "user", "content": f"Copy: {words}"}], **wishes})
    connection = http.client.HTTPConnection("127.0.0.1", port)
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.readline()
    first = time.perf_counter() - began
    rest = answer.read()
    whole = time.perf_counter() - began
    assert answer.status == 200 and rest.endswith(b"data: [DONE]\n\n"), rest
    connection.close()
    return first, whole


def one_server(kind: str) -> dict[str, float]:
    rng = random.Random(1)
    with server(num_threads=1) as (_, url):
        port = int(url.rpartition(":")[2])
        while status(url, "/ready") != 200:
            time.sleep(0.05)
        times = []
        for _ in range(1 + NUM_LATER):
            time.sleep(PAUSE_S)
            times.append(chat(port, rng, kind))
        plan = http.client.HTTPConnection("127.0.0.1", port)
        plan.request("GET", "/plan")
        told = json.loads(plan.getresponse().read())
        plan.close()
        assert not told["late_events"], told["late_events"]
    first, whole = zip(*times, strict=True)
    return {
        "first_token": first[0],
        "later_token": statistics.median(first[1:]),
        "first": whole[0],
        "later": statistics.median(whole[1:]),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        found = []
        for _ in range(NUM_SERVERS):
            found.append(one_server(kind))
            print(kind, {name: f"{value * 1e3:.2f} ms" for name, value in found[-1].items()}, flush=True)
        for what, early, late in (("first token", "first_token", "later_token"), ("whole answer", "first", "later")):
            ratios = [run[early] / run[late] for run in found]
            rows.append(
                {
                    "model": "tiny",
                    "what": f"first {kind} request, {what}",
                    "first_ms": round(statistics.median(run[early] for run in found) * 1e3, 3),
                    "later_ms": round(statistics.median(run[late] for run in found) * 1e3, 3),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratios": [round(ratio, 3) for ratio in ratios],
                    "target": TARGET,
                }
            )
            print(f"{kind}, {what}: first / later {rows[-1]['ratio']} (at most {TARGET})")
    write_result("first_chat", rows, threads=1, dtype="float32", servers=NUM_SERVERS)


if __name__ == "__main__":
    main()
