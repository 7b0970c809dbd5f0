"""What clients get: the real `openai` client against a real server."""

import json

import pytest

from serve.conftest import MODEL, Server

ADD = [{"role": "user", "content": "Add: 319 + 395"}]
LONG = "Copy: a b c d e f g h i j k l m n o p q r s t u v w x y z"


def test_a_chat_is_answered(server: Server) -> None:
    done = server.client.chat.completions.create(model=MODEL, messages=ADD)
    choice = done.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "714", "stop")
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (19, 4, 23)
    assert done.usage.prompt_tokens_details.cached_tokens == 0
    assert done.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_stream_joins_to_the_answer_and_tells_its_usage(server: Server) -> None:
    stream = server.client.chat.completions.create(
        model=MODEL, messages=ADD, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "714"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage.total_tokens) == ([], 23)


def test_a_stream_is_events_that_end_with_done(server: Server) -> None:
    status, text = server.ask("/v1/chat/completions", {"messages": ADD, "stream": True})
    events = text.split("\n\n")
    assert (status, events[-2:]) == (200, ["data: [DONE]", ""])
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-2])


def test_logprobs_belong_to_the_tokens(server: Server) -> None:
    done = server.client.chat.completions.create(model=MODEL, messages=ADD, logprobs=True, top_logprobs=2)
    content = done.choices[0].logprobs.content
    assert [entry.token for entry in content[:3]] == ["7", "1", "4"]
    assert all(entry.top_logprobs[0].token == entry.token and len(entry.top_logprobs) == 2 for entry in content)
    stream = server.client.chat.completions.create(
        model=MODEL, messages=ADD, logprobs=True, top_logprobs=2, stream=True
    )
    streamed = [entry for chunk in stream if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_an_answer_before_them(server: Server, stream: bool) -> None:
    made = server.client.completions.create(
        model=MODEL, prompt="Add: 1", max_tokens=64, stop=["+ 1", "zzz"], seed=1, temperature=0, stream=stream
    )
    parts = list(made) if stream else [made]
    text = "".join(part.choices[0].text for part in parts)
    assert "+" not in text
    assert parts[-1].choices[0].finish_reason == "stop"
    assert parts[-1].choices[0].stop_reason == "+ 1"


def test_prompts_come_as_text_lists_and_ids(server: Server) -> None:
    ids = server.ask("/tokenize", {"prompt": "Sort: 31"})[1]["tokens"]
    assert server.ask("/detokenize", {"tokens": ids})[1] == {"prompt": "Sort: 31"}
    forms = ["Sort: 31", ids, ["Sort: 31", "Sort: 31"], [ids, ids]]
    made = [server.client.completions.create(model=MODEL, prompt=form, max_tokens=3) for form in forms]
    assert [len(one.choices) for one in made] == [1, 1, 2, 2]
    assert len({choice.text for one in made for choice in one.choices}) == 1
    assert [one.usage.prompt_tokens for one in made] == [len(ids)] * 2 + [2 * len(ids)] * 2


def test_echo_scores_a_prompt_without_an_answer(server: Server) -> None:
    made = server.client.completions.create(model=MODEL, prompt="Sort: 31", max_tokens=0, echo=True, logprobs=1)
    found = made.choices[0].logprobs
    assert made.choices[0].text == "".join(found.tokens) == "Sort: 31"
    assert found.token_logprobs[0] is None
    assert all(value < 0 for value in found.token_logprobs[1:])
    assert [len("".join(found.tokens[:i])) for i in range(len(found.tokens))] == found.text_offset
    assert made.usage.completion_tokens == 0


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_a_scored_prompt_is_streamed_as_it_is_given_whole(server: Server, max_tokens: int) -> None:
    def ask(stream: bool):
        return server.client.completions.create(
            model=MODEL, prompt=["Sort: 31", "Add:"], max_tokens=max_tokens, echo=True, logprobs=2, stream=stream
        )

    whole = ask(False)
    parts = [chunk.choices[0] for chunk in ask(True)]
    for choice in whole.choices:
        mine = [part for part in parts if part.index == choice.index]
        assert "".join(part.text for part in mine) == choice.text and mine[-1].finish_reason == choice.finish_reason
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            joined = [value for part in mine if part.logprobs for value in getattr(part.logprobs, name)]
            wanted = getattr(choice.logprobs, name)
            assert joined == wanted if name in ("tokens", "text_offset") else len(joined) == len(wanted), name


def test_choices_differ_and_a_seed_repeats_them(server: Server) -> None:
    def sample() -> list[str]:
        made = server.client.completions.create(model=MODEL, prompt="Copy:", n=4, temperature=2, max_tokens=8, seed=7)
        assert made.usage.prompt_tokens == made.usage.total_tokens - made.usage.completion_tokens
        return [choice.text for choice in made.choices]

    texts = sample()
    assert len(set(texts)) == 4
    assert sample() == texts


def test_what_is_asked_of_tokens_is_done(server: Server) -> None:
    def answer(**fields) -> str:
        made = server.client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=12, temperature=0, extra_body=fields
        )
        return made.choices[0].text

    def ids(text: str) -> list[int]:
        return server.ask("/tokenize", {"prompt": text})[1]["tokens"]

    question = [{"role": "user", "content": "Copy: w x y z"}]
    prompt = server.ask("/tokenize", {"messages": question})[1]["tokens"]
    plain, (x,) = answer(), ids("x")
    assert plain == "w x y z"
    assert answer(logit_bias={str(x): 100}) == "x" * 12
    assert set(answer(allowed_token_ids=ids("xyz"))) <= set("xyz")
    assert set(answer(allowed_token_ids=ids("xyz"), frequency_penalty=2)) == set("xyz")
    assert len(set(answer(logit_bias={str(x): 30}, presence_penalty=2))) == 1
    assert answer(min_p=0.2, repetition_penalty=1.0) == plain
    assert answer(repetition_penalty=100) != plain
    word = plain.strip()[:3]
    assert word not in answer(bad_words=[word])


def test_characters_are_whole_however_their_bytes_are_cut(server: Server) -> None:
    content = "Copy: kßmt o😀r"
    stream = server.client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], stream=True
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(parts) == content.removeprefix("Copy: ")
    assert "�" not in "".join(parts)


def test_models_and_the_description_of_the_api(server: Server) -> None:
    models = server.client.models.list().data
    assert [model.id for model in models] == [MODEL, "other"]
    assert server.client.models.retrieve("other").max_model_len == 256
    status, document = server.ask("/openapi.json")
    assert status == 200
    assert {"/v1/chat/completions", "/v1/models/{id}", "/plan"} <= set(document["paths"])
    assert "ChatRequest" in document["components"]["schemas"]


def test_the_plan_and_the_metrics_tell_the_same(server: Server) -> None:
    plan = server.ask("/plan")[1]
    lines = {line["name"]: line["num_bytes"] for line in plan["memory_plan"]["lines"]}
    assert sum(lines.values()) == plan["memory_plan"]["total_bytes"]
    assert all(server.metric("hotstart:plan_bytes", line=name) == size for name, size in lines.items())
    assert plan["startup"][-1]["name"] == "warm up server"
    assert plan["late_events"] == []
    assert server.metric("vllm:time_to_first_token_seconds_count") > 0
