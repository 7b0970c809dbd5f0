"""The offline API on the shipped checkpoint: prompts in every form, results as vLLM's users know them, and mistakes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tasks import chat_text

from hotstart import LLM, Logprob, SamplingParams
from hotstart.errors import ConfigError, InvalidPrompt, InvalidSamplingParams, PromptTooLong, RequestError
from hotstart.text.bad_words import bad_word_ids

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "tiny-qwen3.5"
SMALL = {
    "dtype": "float32",
    "max_model_len": 128,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "cpu_memory": "2GiB",
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=32)
ADD, SORT, COPY = chat_text("Add: 12 + 30"), chat_text("Sort: 93120"), chat_text("Copy: lfs p日x rd")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(CHECKPOINT, use_tqdm=False, jit_monitor_mode="error", **SMALL) as llm:
        yield llm
        assert llm.late_events == ()


@pytest.fixture(autouse=True)
def engine_is_idle_afterwards(llm: LLM) -> Iterator[None]:
    yield
    assert not llm.engine.has_work
    llm.engine.check()


def texts(results: list[Any]) -> list[str]:
    return [result.outputs[0].text for result in results]


def test_every_form_of_prompt(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(SORT)
    forms = [ADD, ids, {"prompt": COPY}, {"prompt_token_ids": ids}, {"prompt": "shown", "prompt_token_ids": ids}]
    results = llm.generate(forms, GREEDY, use_tqdm=False)
    assert texts(results) == ["42", "01239", "lfs p日x rd", "01239", "01239"]
    assert [result.prompt for result in results] == [ADD, None, COPY, None, "shown"]
    assert all(result.prompt_token_ids == ids for result in (results[1], results[3], results[4]))
    first = results[0].outputs[0]
    assert (first.finish_reason, first.stop_reason, first.index, first.logprobs) == ("stop", None, 0, None)
    assert results[0].finished and results[0].error is None and len({result.request_id for result in results}) == 5


@pytest.mark.parametrize("prompt", [ADD, {"prompt": ADD}], ids=["text", "mapping"])
def test_one_prompt_is_not_many(llm: LLM, prompt: Any) -> None:
    assert texts(llm.generate(prompt, GREEDY, use_tqdm=False)) == ["42"]
    assert texts(llm.generate(llm.get_tokenizer().encode(ADD), GREEDY, use_tqdm=False)) == ["42"]
    assert llm.generate([], GREEDY) == []


def test_each_prompt_has_its_own_params(llm: LLM) -> None:
    params = [SamplingParams(temperature=0.0, max_tokens=2), SamplingParams(temperature=0.0, stop="日", max_tokens=32)]
    short, stopped = llm.generate([SORT, COPY], params, use_tqdm=False)
    assert (short.outputs[0].text, short.outputs[0].finish_reason) == ("01", "length")
    assert (stopped.outputs[0].text, stopped.outputs[0].stop_reason) == ("lfs p", "日")
    with pytest.raises(RequestError, match="1 prompts and 2 sampling_params"):
        llm.generate([SORT], params)


def test_logprobs(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8, logprobs=3, prompt_logprobs=0)
    (result,) = llm.generate(ADD, params, use_tqdm=False)
    output = result.outputs[0]
    assert output.logprobs is not None and result.prompt_logprobs is not None
    assert [next(iter(position)) for position in output.logprobs] == output.token_ids
    best = output.logprobs[0][output.token_ids[0]]
    assert isinstance(best, Logprob) and (best.rank, best.decoded_token) == (1, "4") and -0.1 < best.logprob <= 0
    assert all(len(position) == 3 for position in output.logprobs)
    assert output.cumulative_logprob == sum(next(iter(p.values())).logprob for p in output.logprobs)
    assert result.prompt_logprobs[0] is None and len(result.prompt_logprobs) == len(result.prompt_token_ids)
    assert [next(iter(p)) for p in result.prompt_logprobs[1:] if p] == result.prompt_token_ids[1:]


def test_seeded_draws_repeat_whatever_the_neighbours(llm: LLM) -> None:
    drawn = SamplingParams(temperature=3.0, seed=11, max_tokens=12, ignore_eos=True)
    alone = llm.generate(ADD, drawn, use_tqdm=False)[0].outputs[0].token_ids
    assert len(alone) == 12
    beside = llm.generate([SORT, ADD, COPY], [GREEDY, drawn, GREEDY], use_tqdm=False)
    assert beside[1].outputs[0].token_ids == alone


def test_answers_in_several_choices(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=2.0, seed=5, max_tokens=8, bad_words=("e", "at"), ignore_eos=True)
    results = llm.generate([ADD, SORT], params, use_tqdm=False)
    assert [[output.index for output in result.outputs] for result in results] == [[0, 1, 2]] * 2
    answers = [[output.token_ids for output in result.outputs] for result in results]
    assert len({tuple(ids) for group in answers for ids in group}) > 3 and all(result.finished for result in results)
    words = bad_word_ids(params.bad_words, llm.get_tokenizer())
    for ids in (tuple(ids) for group in answers for ids in group):
        assert not any(word == ids[i : i + len(word)] for word in words for i in range(len(ids)))
    again = llm.generate([SORT, ADD], params, use_tqdm=False)
    assert [[output.token_ids for output in result.outputs] for result in reversed(again)] == answers
    with pytest.raises(RequestError, match="n is 3"):
        next(llm.stream(ADD, params))


def test_chat(llm: LLM) -> None:
    add, sort = ([{"role": "user", "content": text}] for text in ("Add: 12 + 30", "Sort: 93120"))
    assert texts(llm.chat(add, use_tqdm=False)) == ["42"]  # greedy, as the checkpoint's generation_config.json says
    results = llm.chat([add, sort], GREEDY, use_tqdm=False, chat_template_kwargs={"enable_thinking": False})
    assert texts(results) == ["42", "01239"] and results[0].prompt == ADD
    with pytest.raises(InvalidPrompt, match="refused the messages"):
        llm.chat([{"role": "user", "content": None}])


def test_a_stream_joins_to_the_text_and_can_be_left(llm: LLM) -> None:
    pieces = list(llm.stream(COPY, GREEDY))
    assert "".join(pieces) == "lfs p日x rd" and len(pieces) > 3
    stream = llm.stream(COPY, SamplingParams(max_tokens=100, ignore_eos=True))
    next(stream)
    assert llm.engine.has_work
    stream.close()  # type: ignore[attr-defined]  # a generator


def test_streams_run_beside_each_other(llm: LLM) -> None:
    add, copy, sort = (llm.stream(prompt, GREEDY) for prompt in (ADD, COPY, SORT))
    first = next(copy)
    assert texts(llm.generate([ADD, COPY], GREEDY, use_tqdm=False)) == ["42", "lfs p日x rd"]
    assert ["".join(add), first + "".join(copy), "".join(sort)] == ["42", "lfs p日x rd", "01239"]


@pytest.mark.parametrize(
    ("bad", "params", "error", "words"),
    [
        ("", GREEDY, InvalidPrompt, "prompt 1: .*empty"),
        ([3, 448], GREEDY, InvalidPrompt, r"prompt 1: .*448.*\[0, 447\]"),
        ([3, -1], GREEDY, InvalidPrompt, "prompt 1: .*-1"),
        ({"text": "a"}, GREEDY, InvalidPrompt, "prompt 1: a prompt is {'text': 'a'}"),
        ({"prompt_token_ids": [1.5]}, GREEDY, InvalidPrompt, r"prompt 1: prompt_token_ids is \[1.5\]"),
        ([5] * 128, GREEDY, PromptTooLong, "prompt 1: .*128.*--max-model-len"),
        ("a", SamplingParams(stop_token_ids=(448,)), InvalidSamplingParams, "prompt 1: .*448"),
        ("a", {"max_tokens": 3}, RequestError, "prompt 1: sampling_params is"),
    ],
)
def test_a_bad_prompt_is_named_before_anything_runs(
    llm: LLM, bad: Any, params: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        llm.generate([ADD, bad, SORT], [GREEDY, params, GREEDY], use_tqdm=False)
    assert not llm.engine.has_work
    assert texts(llm.generate(ADD, GREEDY, use_tqdm=False)) == ["42"]


def test_what_is_no_prompt_at_all_is_named(llm: LLM) -> None:
    for prompts in (None, 3):
        with pytest.raises(InvalidPrompt, match=f"prompts is {prompts}; give text"):
            llm.generate(prompts, GREEDY, use_tqdm=False)  # type: ignore[arg-type]  # on purpose


def test_progress_is_shown_unless_told_not_to(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate([ADD, SORT], GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""
    llm.generate([ADD, SORT], GREEDY)
    assert "2/2" in capsys.readouterr().err


def test_misspelt_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no option max_num_seq; did you mean max_num_seqs\?"):
        LLM(CHECKPOINT, max_num_seq=4)
    with pytest.raises(ConfigError, match="--dtype is 'int8'"):
        LLM(CHECKPOINT, dtype="int8")


def test_without_a_tokenizer(llm: LLM) -> None:
    with LLM(CHECKPOINT, skip_tokenizer_init=True, use_tqdm=False, **SMALL) as bare:
        ids = llm.get_tokenizer().encode(ADD)
        with pytest.raises(ConfigError, match="token ids"):
            bare.generate([ids, ADD])
        assert not bare.engine.has_work
        result = bare.generate(ids, SamplingParams(temperature=0.0, max_tokens=2, logprobs=0), use_tqdm=False)[0]
        assert llm.get_tokenizer().decode(result.outputs[0].token_ids) == "42"
        assert (result.outputs[0].text, next(iter((result.outputs[0].logprobs or [])[0].values())).decoded_token) == (
            "",
            None,
        )
        with pytest.raises(RequestError, match="stop strings need a tokenizer"):
            bare.generate(ids, SamplingParams(stop="x"))
        with pytest.raises(RequestError, match="bad_words need a tokenizer"):
            bare.generate(ids, SamplingParams(bad_words=("x",)))
