"""OpenAI's API as data: what a request may say, what an answer looks like, and how an error is told.

The shapes are those of https://platform.openai.com/docs/api-reference for `/v1/models`, `/v1/chat/completions` and
`/v1/completions`. What this server cannot do (penalties, tools, …) is refused by name instead of passed over, at every
depth; parameters without effect on the answer (user, metadata, a penalty of 0, any null) are accepted at every depth.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from wukong.errors import UsageError, WukongError, brief
from wukong.serve.service import Answer, BusyError, Drawing, Piece, Token, TooLongError, UnknownModelError, Whole
from wukong.tokenizer import Tokenizer

WITHOUT_EFFECT = {
    # OpenAI's: accounts, caches, storage
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
    # of other servers: caches, queues, and parts of a reply that do not exist here
    "cache_prompt", "cache_salt", "id_slot", "n_keep", "request_id", "return_token_ids", "return_tokens_as_token_ids",
    "t_max_predict_ms", "timings_per_token",
}  # fmt: skip
# What a client may send as long as it asks for nothing: OpenAI's parameters, then those of vLLM, SGLang, llama.cpp and
# TGI, whose clients send them with these values. null says the same for every parameter.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({}, []),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "early_stopping": (False,),
    "grammar": ("",),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "json_schema": ({},),
    "length_penalty": (1,),
    "min_keep": (0,),
    "min_new_tokens": (0,),
    "min_p": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "mm_processor_kwargs": ({},),
    "n_probs": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "priority": (0,),
    "prompt_logprobs": (0,),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "tfs_z": (1,),
    "top_a": (0,),
    "top_n_sigma": (-1, 0),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}
# The same inside of a message, of a part of its content, and of stream_options. An answer of this server carries some
# of them and comes back with the next question; those of other servers, and of the `openai` client, carry the others.
MESSAGE_WITHOUT_EFFECT = {"name", "id", "cache_control"}
MESSAGE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": ({},),
    "function_call": ({},),
    "parsed": ({},),
    "prefix": (False,),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "reasoning_details": ([],),
    "refusal": ("",),
    "tool_call_id": ("",),
    "tool_calls": ([],),
}
PART_WITHOUT_EFFECT = {"id", "cache_control", "prompt_cache_breakpoint"}
PART_NEUTRAL: dict[str, tuple[Any, ...]] = {"annotations": ([],), "logprobs": ([],)}
STREAM_WITHOUT_EFFECT = {"include_obfuscation"}
STREAM_NEUTRAL: dict[str, tuple[Any, ...]] = {"continuous_usage_stats": (False,)}


class ApiError(Exception):
    """What the client gets: an HTTP status and OpenAI's error object."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(brief(message, str, 1000))  # what a client says may come back in it
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def as_api_error(error: WukongError) -> ApiError:
    """Our own errors in OpenAI's words; `openai` raises NotFoundError, BadRequestError, RateLimitError for them."""
    match error:
        case UnknownModelError():
            return ApiError(404, str(error), code="model_not_found", param="model")
        case TooLongError():
            return ApiError(400, str(error), code="context_length_exceeded", param="max_tokens")
        case BusyError():
            return ApiError(429, str(error), code="server_busy")
        case UsageError():
            return ApiError(400, str(error))
    return ApiError(500, str(error))


# ---------------------------------------------------------------------------------------------------------- requests


class _OnlyTheFirst(FailFast):
    """Of a megabyte of wrong items the first one is enough; one with a hash, for unions of Python 3.11."""

    def __hash__(self) -> int:
        return hash(type(self))


Item = TypeVar("Item")
_Listed = Annotated[list[Item], _OnlyTheFirst()]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class _ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | _Listed[_Part]

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class ModelRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    temperature: float | None = Field(None, ge=0, le=2)  # these three: what the model recommends when absent
    top_p: float | None = Field(None, gt=0, le=1)
    # Not OpenAI's; the `openai` client sends it in extra_body. -1: all
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    n: int = Field(1, ge=1, le=128)
    seed: int | None = None
    stop: StrictStr | _Listed[StrictStr] = Field([], max_length=1000)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()

    @model_validator(mode="after")
    def _stop_texts_say_something(self) -> ModelRequest:
        if isinstance(self.stop, list) and (len(self.stop) > 16 or not all(self.stop)):
            raise ValueError("stop: a text or up to 16 texts, none of them empty")
        if max(map(len, self._stops()), default=0) > 1000:
            raise ValueError("stop: a text of at most 1000 characters")
        return self

    def _stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) and self.stop else list(self.stop)

    def _asked_logprobs(self) -> int | None:
        raise NotImplementedError

    def drawing(self) -> Drawing:
        return Drawing(
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            top_p=self.top_p,
            seed=self.seed,
            n=self.n,
            stop=self._stops(),
            top_logprobs=self._asked_logprobs(),
        )


class ChatRequest(ModelRequest):
    messages: _Listed[_ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        return self

    def _asked_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(ModelRequest):
    prompt: StrictStr | _Listed[StrictStr] | _Listed[StrictInt] | _Listed[_Listed[StrictInt]] = ""
    logprobs: int | None = Field(None, ge=0, le=20)

    @field_validator("logprobs", mode="before")
    @classmethod
    def _false_asks_for_none(cls, value: Any) -> Any:
        return None if value is False else value

    def prompts(self) -> Sequence[str | Sequence[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise ApiError(400, "prompt: an empty list", param="prompt")
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt

    def _asked_logprobs(self) -> int | None:
        return self.logprobs


R = TypeVar("R", bound=ModelRequest)


def parse(kind: type[R], body: Any) -> R:
    """A validated request. Raises ApiError that names the parameter."""
    if not isinstance(body, Mapping):
        raise ApiError(400, "the body must be a JSON object")
    given = _asked_for(body, WITHOUT_EFFECT, NEUTRAL)
    if isinstance(options := given.get("stream_options"), Mapping):
        given["stream_options"] = _asked_for(options, STREAM_WITHOUT_EFFECT, STREAM_NEUTRAL, "stream_options.")
    if isinstance(messages := given.get("messages"), list):
        given["messages"] = [_message(one, f"messages.{i}.") for i, one in enumerate(messages)]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_input=False)
        # Of a union there is an error for each branch; the one inside of a value says more than that it is no text.
        branches = [one for one in others if one["loc"][: len(first["loc"]) - 1] == first["loc"][:-1]]
        first = max((first, *branches), key=lambda one: len(one["loc"]))
        # Of a union pydantic names the branch too: ("messages", 0, "content", "list[_Part]", 1, "type").
        where = [str(part) for part in first["loc"] if isinstance(part, int) or str(part).isidentifier()]
        param = ".".join(part for part in where if part not in ("str", "int"))
        if first["type"] == "extra_forbidden":
            raise ApiError(400, f"unknown parameter {param}", code="unknown_parameter", param=param) from None
        message = first["msg"].removeprefix("Value error, ")
        raise ApiError(400, f"{param}: {message}" if param else message, param=param or None) from None


def _asked_for(
    given: Mapping[str, Any], without_effect: Collection[str], neutral: Mapping[str, tuple[Any, ...]], place: str = ""
) -> dict[str, Any]:
    """What of an object asks for something. Raises ApiError for what cannot be done here."""
    left = {name: value for name, value in given.items() if value is not None and name not in without_effect}
    for name in neutral.keys() & left.keys():
        if not any(_same(left[name], one) for one in neutral[name]) and not _biases_nothing(name, left[name]):
            problem = f"{place}{name} is not supported here"
            raise ApiError(400, problem, code="unsupported_parameter", param=place + name)
        del left[name]
    return left


def _same(value: Any, neutral: Any) -> bool:
    """Equal, where 1 is not True."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _biases_nothing(name: str, value: Any) -> bool:
    return name == "logit_bias" and isinstance(value, dict) and all(bias == 0 for bias in value.values())


def _message(message: Any, place: str) -> Any:
    if not isinstance(message, Mapping):
        return message  # the validation says so
    if message.get("role") in ("tool", "function"):
        problem = f"{place}role: this server calls no tools, so a {message['role']} message answers nothing"
        raise ApiError(400, problem, code="unsupported_parameter", param=f"{place}role")
    left = _asked_for(message, MESSAGE_WITHOUT_EFFECT, MESSAGE_NEUTRAL, place)
    if left.get("role") == "assistant" and message.get("content") is None:
        left["content"] = ""  # an answer that said nothing
    if isinstance(content := left.get("content"), list):
        left["content"] = [_part(one, f"{place}content.{i}.") for i, one in enumerate(content)]
    return left


def _part(part: Any, place: str) -> Any:
    if not isinstance(part, Mapping):
        return part
    kind = part.get("type")
    if isinstance(kind, str) and kind != "text":
        problem = f"{place}type: this server reads text only; a part of type {kind[:40]!r} cannot be answered"
        raise ApiError(400, problem, code="unsupported_parameter", param=f"{place}type")
    return _asked_for(part, PART_WITHOUT_EFFECT, PART_NEUTRAL, place)


# ----------------------------------------------------------------------------------------------------------- answers


def usage(answer: Answer, completion_tokens: int) -> dict[str, int]:
    prompt = sum(answer.prompt_tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt + completion_tokens,
    }


class Shape:
    """One of the two endpoints' answers, whole or in pieces."""

    prefix = whole_object = piece_object = ""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.tokenizer = answer, answer.served.tokenizer
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time())}
        self._logprobs = False

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": kind, "model": self.answer.served.name, "choices": choices}

    def whole(self, answers: Sequence[Whole], logprobs: bool) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                **self._content(one.text),
                "logprobs": self._noted(one.tokens) if logprobs else None,
                "finish_reason": one.finish_reason,
            }
            for i, one in enumerate(answers)
        ]
        tokens = sum(one.n_tokens for one in answers)
        return {**self._object(self.whole_object, choices), "usage": usage(self.answer, tokens)}

    def piece(self, piece: Piece, logprobs: bool) -> dict[str, Any]:
        choice = {
            "index": piece.index,
            **self._delta(piece.text),
            "logprobs": self._noted(piece.tokens) if logprobs else None,
            "finish_reason": piece.finish_reason,
        }
        return self._object(self.piece_object, [choice])

    def opening(self) -> Iterable[dict[str, Any]]:
        return ()

    def closing(self, completion_tokens: int) -> dict[str, Any]:
        """The last piece when the client asked for the usage."""
        return {**self._object(self.piece_object, []), "usage": usage(self.answer, completion_tokens)}

    def _content(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _noted(self, tokens: Sequence[Token]) -> dict[str, Any]:
        raise NotImplementedError


class ChatShape(Shape):
    prefix, whole_object, piece_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> Iterable[dict[str, Any]]:
        for i in range(self.answer.count):
            choice = {
                "index": i,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            yield self._object(self.piece_object, [choice])

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def _noted(self, tokens: Sequence[Token]) -> dict[str, Any]:
        content = [
            {
                **self._entry(token.id, token.logprob),
                "top_logprobs": [self._entry(index, logprob) for index, logprob in token.likeliest],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, index: int, logprob: float | None) -> dict[str, Any]:
        raw = self.tokenizer.token_bytes(index, skip_special=False)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


class CompletionShape(Shape):
    prefix, whole_object, piece_object = "cmpl", "text_completion", "text_completion"

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    _delta = _content

    def _noted(self, tokens: Sequence[Token]) -> dict[str, Any]:
        return {
            "tokens": [token_name(self.tokenizer, token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {token_name(self.tokenizer, index): logprob for index, logprob in token.likeliest} for token in tokens
            ],
            "text_offset": [token.start for token in tokens],
        }


def token_name(tokenizer: Tokenizer, index: int) -> str:
    """A token's text; a part of a character, which has none, as OpenAI writes it: bytes:\\xe2\\x80."""
    raw = tokenizer.token_bytes(index, skip_special=False)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
