"""Whole conversations by the official client: every answer goes back, as it came, with the next question."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

ASK = {"model": "policy", "max_tokens": 4, "seed": 3}


def whole(client: openai.OpenAI, messages: list) -> Any:
    return client.chat.completions.create(messages=messages, **ASK).choices[0].message


def helped(client: openai.OpenAI, messages: list) -> Any:
    """By the client's own helper for streams, which adds fields of its own."""
    with client.chat.completions.stream(messages=messages, **ASK) as stream:
        for event in stream:
            if event.type == "chunk":
                found = event.snapshot.choices[0].message
    return found


def with_everything(client: openai.OpenAI, messages: list) -> dict:
    """Every field that the answer has, also those that are null."""
    return whole(client, messages).model_dump()


def with_everything_helped(client: openai.OpenAI, messages: list) -> dict:
    return helped(client, messages).model_dump()


def put_together(client: openai.OpenAI, messages: list) -> dict:
    """From the pieces, as programs do that know no helper."""
    message: dict[str, Any] = {}
    for piece in client.chat.completions.create(messages=messages, stream=True, **ASK):
        for name, value in piece.choices[0].delta.model_dump().items():
            known = message.get(name)
            message[name] = known + value if isinstance(known, str) and isinstance(value, str) else known or value
    return message


def raw(client: openai.OpenAI, messages: list) -> dict:
    """The JSON itself."""
    sent = {"messages": [one if isinstance(one, dict) else one.model_dump() for one in messages], **ASK}
    answer = httpx.post(f"{client.base_url}chat/completions", json=sent, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]


WAYS: list[Callable] = [whole, helped, with_everything, with_everything_helped, put_together, raw]


@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
def test_every_answer_is_accepted_when_it_is_sent_back(client, way):
    messages: list[Any] = []
    for question in ("Eggs?", "3?", "9?"):
        messages.append({"role": "user", "content": question})
        messages.append(way(client, messages))
    said = [one["content"] if isinstance(one, dict) else one.content for one in messages]
    assert said[0::2] == ["Eggs?", "3?", "9?"]
    assert all(isinstance(text, str) for text in said)
    # What was sent back is what was answered: the plain conversation gets the same last answer.
    plain = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said[:-1])]
    assert whole(client, plain).content == said[-1]


USER = {"role": "user", "content": "Eggs?"}
TAKEN: list[dict] = [
    {"top_k": -1}, {"repetition_penalty": 1}, {"repetition_penalty": 1.0}, {"repeat_penalty": 1}, {"min_p": 0},
    {"min_p": 0.0, "typical_p": 1, "tfs_z": 1.0, "top_a": 0}, {"stop_token_ids": []}, {"ignore_eos": False},
    {"skip_special_tokens": True}, {"logit_bias": {"12": 0}}, {"chat_template_kwargs": {}}, {"tools": None},
    {"response_format": {"type": "text"}}, {"stream_options": {"include_obfuscation": False}},
    {"stream_options": {"include_usage": None}}, {"beams": None}, {"stop": None}, {"seed": None},
    {"messages": [{**USER, "name": "Ann", "refusal": None, "tool_calls": [], "unheard_of": None}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Eggs?", "cache_control": {"type": "x"},
                                                "annotations": [], "unheard_of": None}]}]},
    {"messages": [USER, {"role": "assistant", "content": None, "function_call": None}, USER]},
    {"messages": [USER, {"role": "assistant", "refusal": "", "reasoning_content": None}, USER]},
    {"user": {"any": ["depth"]}, "metadata": {"a": {"b": None}}},
]  # fmt: skip


@pytest.mark.parametrize("more", TAKEN, ids=[json.dumps(more)[:60] for more in TAKEN])
def test_parameters_without_effect_are_accepted_at_every_depth(address, more):
    answer = httpx.post(f"{address}/v1/chat/completions", json={"messages": [USER], **ASK, **more}, timeout=120)
    assert answer.status_code == 200, answer.text


REFUSED: list[tuple[dict, str]] = [
    ({"top_k": -2}, "top_k"), ({"repetition_penalty": 1.1}, "repetition_penalty"), ({"min_p": 0.1}, "min_p"),
    ({"ignore_eos": True}, "ignore_eos"), ({"echo": 0}, "echo"), ({"min_tokens": False}, "min_tokens"),
    ({"logit_bias": {"12": 1}}, "logit_bias"), ({"stream_options": {"beams": 1}}, "stream_options.beams"),
    ({"messages": [{**USER, "tool_calls": [{"id": "x"}]}]}, "messages.0.tool_calls"),
    ({"messages": [{**USER, "beams": 1}]}, "messages.0.beams"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "beams": 1}]}]},
     "messages.0.content.0.beams"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "param"), REFUSED, ids=[param for _, param in REFUSED])
def test_what_asks_for_something_else_is_refused_at_every_depth(address, more, param):
    answer = httpx.post(f"{address}/v1/chat/completions", json={"messages": [USER], **ASK, **more}, timeout=120)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize("part", [
    {"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "input_audio", "input_audio": {}},
    {"type": "file", "file": {}}, {"type": "refusal", "refusal": "no"},
], ids=lambda part: part["type"])  # fmt: skip
def test_parts_that_are_not_text_are_named(client, part):
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]
    with pytest.raises(openai.BadRequestError, match=f"this server reads text only; a part of type '{part['type']}'"):
        whole(client, messages)
