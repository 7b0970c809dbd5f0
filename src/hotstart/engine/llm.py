"""LLM: the offline API, named as vLLM's.

llm = LLM(model="path/to/checkpoint")
for result in llm.generate(["Hello", {"prompt_token_ids": [1, 2, 3]}], SamplingParams(max_tokens=32)):
    print(result.outputs[0].text)
"""

import dataclasses
import difflib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from hotstart.config.engine import EngineConfig
from hotstart.config.generation import read_sampling_defaults
from hotstart.engine.download import download
from hotstart.engine.engine import Engine
from hotstart.engine.memory import MemoryPlan
from hotstart.engine.outputs import OutputBuilder, RequestOutput, output_of
from hotstart.engine.phases import StartupReport
from hotstart.engine.progress import RequestProgress, show_requests, show_startup
from hotstart.engine.startup import start
from hotstart.errors import ConfigError, InvalidPrompt, RequestError
from hotstart.kernels.watch import LateEvent
from hotstart.request import Request, SamplingParams
from hotstart.text.chat import ChatTemplate, Message, read_chat_template
from hotstart.text.params import with_tokens
from hotstart.text.tokenizer import Tokenizer

__all__ = ["LLM", "Prompt"]

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, {"prompt": text} or {"prompt_token_ids": ids}."""


class LLM:
    """An engine, started and sealed, with its tokenizer.

    `options` are the fields of EngineConfig.  Raises a HotstartError that names the remedy if the engine cannot start.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: str | Path | None = None,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        device: str = "auto",
        max_model_len: int | str | None = None,
        use_tqdm: bool = True,
        **options: Any,
    ) -> None:
        _check_names(options)
        config = EngineConfig(
            model=str(model),
            tokenizer=None if tokenizer is None else str(tokenizer),
            dtype=dtype,  # type: ignore[arg-type]  # EngineConfig checks the values of these three itself
            device=device,  # type: ignore[arg-type]  # as above
            max_model_len=max_model_len,  # type: ignore[arg-type]  # as above
            **options,
        )
        with show_startup(use_tqdm) as on_phase:
            config = download(config, on_phase)
        self._model_folder = Path(config.model)
        self._tokenizer_folder = Path(config.tokenizer or config.model)
        # A missing tokenizer is found out before the weights are loaded.
        self.tokenizer = None if skip_tokenizer_init else Tokenizer(self._tokenizer_folder)
        with show_startup(use_tqdm) as on_phase:
            self.engine: Engine = start(config, on_phase)
        self._chat_template: ChatTemplate | None = None
        self._numbers = itertools.count()
        self._running: dict[str, OutputBuilder] = {}

    @property
    def memory_plan(self) -> MemoryPlan:
        return self.engine.memory_plan

    @property
    def startup(self) -> StartupReport:
        return self.engine.startup

    @property
    def late_events(self) -> tuple[LateEvent, ...]:
        """What compiled, tuned, loaded or grew after the seal: nothing, if hotstart keeps its promise."""
        return self.engine.late_events

    def get_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ConfigError("this LLM was made with skip_tokenizer_init=True; give prompts as token ids")
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json recommends."""
        return read_sampling_defaults(self._model_folder)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """One result for each prompt, in their order.

        Raises a RequestError that names the prompt before anything runs, if one of them cannot be served.  A failure
        while they run is in the `error` of the results that it hit.
        """
        choices = self._make_builders(_as_list(prompts), sampling_params)
        builders = list(itertools.chain.from_iterable(choices))
        with show_requests(len(builders), use_tqdm) as progress:
            for _ in self._run(builders, progress):
                pass
        return [output_of(group) for group in choices]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Complete one conversation, or several.

        `template_options`: tools, add_generation_prompt, chat_template_kwargs (such as {"enable_thinking": False}).
        """
        one = not messages or isinstance(messages[0], Mapping)
        conversations: Any = [messages] if one else messages
        prompts = [self.chat_prompt(conversation, **template_options) for conversation in conversations]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The prompt that the checkpoint's chat template makes of the messages."""
        tokenizer = self.get_tokenizer()
        if self._chat_template is None:
            self._chat_template = read_chat_template(self._tokenizer_folder, tokenizer.special_tokens)
        text = self._chat_template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **(chat_template_kwargs or {})
        )
        return {"prompt": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[str]:
        """The text of one answer as it grows.  Raises the error that ended it, if one did."""
        if sampling_params is not None and sampling_params.n > 1:
            raise RequestError(f"n is {sampling_params.n}, a stream is one answer; use generate for several")
        ((builder,),) = (builders,) = self._make_builders([prompt], sampling_params)
        for _ in self._run(builders):
            if text := builder.take_text():
                yield text
        yield from filter(None, [builder.take_text()])  # of steps that other calls made
        if builder.error is not None:
            raise builder.error

    def close(self) -> None:
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_builders(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[list[OutputBuilder]]:
        """Adds every prompt to the engine, or none of them; one builder for each answer to a prompt."""
        if params is None:
            params = self.get_default_sampling_params()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts and {len(each)} sampling_params; give one, or one for each")
        builders: list[OutputBuilder] = []
        choices: list[list[OutputBuilder]] = []
        with ExitStack() as undo:
            undo.callback(self._abort, builders)
            for number, (prompt, wishes) in enumerate(zip(prompts, each, strict=True)):
                try:
                    group = self._make_group(prompt, wishes)
                    for builder in group:
                        self.engine.add(builder.request)
                        builders.append(builder)
                except RequestError as error:
                    raise type(error)(f"prompt {number}: {error}") from error
                choices.append(group)
            undo.pop_all()
        self._running |= {builder.request.id: builder for builder in builders}
        return choices

    def _make_group(self, prompt: Prompt, params: SamplingParams) -> list[OutputBuilder]:
        text, ids = _read_prompt(prompt)
        if ids is None:
            assert text is not None
            ids = self.get_tokenizer().encode(text)
        if not isinstance(params, SamplingParams):
            raise RequestError(f"sampling_params is {params!r}, expected SamplingParams")
        if self.tokenizer is not None:
            params = with_tokens(params, self.tokenizer)
        elif params.stop:
            raise RequestError("stop strings need a tokenizer; give stop_token_ids instead")
        elif params.bad_words:
            raise RequestError("bad_words need a tokenizer; give bad_word_ids instead")
        if params.structured_outputs is not None:
            self.engine.check_shape(params.structured_outputs)
        now = time.monotonic()
        requests = [Request(str(next(self._numbers)), tuple(ids), each, now) for each in params.choices()]
        return [OutputBuilder(request, text, self.tokenizer) for request in requests]

    def _run(self, builders: Sequence[OutputBuilder], progress: RequestProgress | None = None) -> Iterator[None]:
        """Steps the engine until all of these are finished; pauses after each step."""
        unfinished = list(builders)
        try:
            while unfinished := [builder for builder in unfinished if not builder.finished]:
                tokens = self._step()
                if progress:
                    progress.update(tokens, sum(builder.finished for builder in unfinished))
                yield
        finally:
            self._abort(unfinished)

    def _step(self) -> int:
        """One step of all that is in the engine, requests of other streams too.  Returns the number of new tokens."""
        assert self.engine.has_work, f"the engine lost requests {list(self._running)}"
        tokens = 0
        for event in self.engine.step():
            builder = self._running.get(event.request_id)
            if builder is None:  # left, or ended at a stop string while its next token was on the way
                continue
            tokens -= builder.num_tokens
            builder.push(event)
            tokens += builder.num_tokens
            if builder.finished:
                del self._running[event.request_id]
                if event.finish_reason is None:  # at a stop string, which the engine does not see
                    self.engine.abort(event.request_id)
        return tokens

    def _abort(self, builders: Iterable[OutputBuilder]) -> None:
        for builder in builders:
            self._running.pop(builder.request.id, None)
            self.engine.abort(builder.request.id)


def _check_names(options: Mapping[str, Any]) -> None:
    known = [item.name for item in dataclasses.fields(EngineConfig)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"LLM has no option {name}; {hint}")


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    one: Any = prompts
    if not isinstance(prompts, Iterable):
        raise InvalidPrompt(f"prompts is {_short(one)}; give text, token ids, or a list of prompts")
    if isinstance(one, str | Mapping) or (one and all(isinstance(item, int) for item in one)):
        return [one]
    return list(one)


def _read_prompt(prompt: Any) -> tuple[str | None, Sequence[int] | None]:
    """Text and token ids, at least one of them."""
    if isinstance(prompt, str):
        return prompt, None
    text, ids = (
        (prompt.get("prompt"), prompt.get("prompt_token_ids")) if isinstance(prompt, Mapping) else (None, prompt)
    )
    if ids is not None:
        if not isinstance(ids, Sequence) or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise InvalidPrompt(f"prompt_token_ids is {_short(ids)}, expected a list of integers")
        return text, ids
    if not isinstance(text, str):
        raise InvalidPrompt(f"a prompt is {_short(prompt)}; give text, or token ids as {{'prompt_token_ids': [...]}}")
    return text, None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
