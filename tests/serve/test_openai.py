"""The official `openai` client against our server: the same answers as the Python interface gives, and clear errors."""

import asyncio

import openai
import pytest
import torch

from tests.serve.serving import CONTEXT, value
from wukong.rollout import generate
from wukong.seeds import derived_seed

ASKED = [{"role": "user", "content": "Boil 3 eggs"}]
TALK = [{"role": "system", "content": "Be brief."}, *ASKED, {"role": "assistant", "content": "9"},
        {"role": "user", "content": "Why?"}]  # fmt: skip


def ask(client, messages=ASKED, model="policy", **options):
    return client.chat.completions.create(model=model, messages=messages, **options)


def streamed(client, messages=ASKED, **options) -> tuple[str, list]:
    """(the text, the pieces)."""
    pieces = list(ask(client, messages, stream=True, **options))
    return "".join(p.choices[0].delta.content or "" for p in pieces if p.choices), pieces


# ---------------------------------------------------------------------------------------------------- the same answers


def test_the_models_are_listed(client):
    assert [one.id for one in client.models.list()] == ["policy", "sft"]
    one = client.models.retrieve("sft")
    assert (one.object, one.owned_by, one.context_length) == ("model", "wukong", CONTEXT)


@pytest.mark.parametrize("messages", [ASKED, TALK], ids=["turn", "talk"])
@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"seed": 4}, {}),
        ({"seed": 4, "temperature": 0.7, "top_p": 0.8}, {"temperature": 0.7, "top_p": 0.8}),
        ({"seed": 4, "extra_body": {"top_k": 5}}, {"top_k": 5}),
    ],
    ids=["greedy", "sampled", "nucleus", "top-k"],
)
def test_answers_are_those_of_the_python_interface(client, policy, messages, options, ours):
    (expected,) = policy.generate([messages], max_new_tokens=30, seed=4, **ours)
    answer = ask(client, messages, max_tokens=30, **options)
    (choice,) = answer.choices
    assert choice.message.content == expected.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == len(policy.tokenizer.prompt_ids(messages))
    assert answer.usage.completion_tokens == expected.n_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + expected.n_tokens
    assert (answer.object, answer.model) == ("chat.completion", "policy")


def test_n_answers_are_those_to_a_prompt_given_n_times(client, policy):
    expected = policy.generate([ASKED] * 5, max_new_tokens=20, seed=7)
    answer = ask(client, n=5, max_completion_tokens=20, seed=7)
    assert [choice.message.content for choice in answer.choices] == [one.text for one in expected]
    assert [choice.index for choice in answer.choices] == list(range(5))
    assert answer.usage.completion_tokens == sum(one.n_tokens for one in expected)


def test_an_answer_without_a_seed_is_another_each_time(client):
    assert len({ask(client, max_tokens=30).choices[0].message.content for _ in range(3)}) > 1


def test_the_streamed_pieces_make_up_the_whole(client):
    options = {"max_tokens": 40, "seed": 3}
    text, pieces = streamed(client, **options, stream_options={"include_usage": True})
    whole = ask(client, **options)
    assert text == whole.choices[0].message.content
    assert len([p for p in pieces if p.choices and p.choices[0].delta.content]) > 5, "token by token"
    assert pieces[0].choices[0].delta.role == "assistant"
    reasons = [p.choices[0].finish_reason for p in pieces if p.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])
    assert pieces[-1].usage == whole.usage
    assert len({piece.id for piece in pieces}) == 1


def test_several_streamed_answers_come_under_their_numbers(client):
    texts = dict.fromkeys(range(3), "")
    for piece in ask(client, n=3, max_tokens=20, seed=1, stream=True):
        for choice in piece.choices:
            texts[choice.index] += choice.delta.content or ""
    assert list(texts.values()) == [c.message.content for c in ask(client, n=3, max_tokens=20, seed=1).choices]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_logprobs_equal_those_recomputed(client, policy, temperature):
    """They are the model's own, at temperature 1, whatever the answer was drawn with."""
    answer = ask(client, max_tokens=30, seed=2, temperature=temperature, logprobs=True, top_logprobs=4)
    (choice,) = answer.choices
    noted = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in noted).decode("utf-8", "replace") == choice.message.content
    ids, expected = policy.tokenizer.prompt_ids(ASKED), []
    by_bytes = {policy.tokenizer.token_bytes(i, skip_special=False): i for i in range(policy.tokenizer.vocab_size)}
    for token in noted:
        with torch.no_grad():
            logprobs = policy.model.logits(policy.model(torch.tensor([ids])))[0, -1].log_softmax(-1)
        expected.append(float(logprobs[by_bytes[bytes(token.bytes)]]))
        best = logprobs.topk(4)
        assert [one.logprob for one in token.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [by_bytes[bytes(one.bytes)] for one in token.top_logprobs] == best.indices.tolist()
        ids.append(by_bytes[bytes(token.bytes)])
    assert [token.logprob for token in noted] == pytest.approx(expected, abs=1e-4)
    assert len(noted) > 5


def test_logprobs_sum_to_those_of_the_python_interface(client, policy):
    """The answer is encoded anew there, so one that decodes to its own tokens is taken."""
    for seed in range(50):
        (choice,) = ask(client, max_tokens=3, seed=seed, logprobs=True).choices
        noted = choice.logprobs.content
        again = policy.tokenizer.encode(choice.message.content)
        if [policy.tokenizer.token_bytes(i) for i in again] == [bytes(token.bytes) for token in noted] and noted:
            (logprobs,) = policy.logprobs([(ASKED, choice.message.content)], finished=False)
            assert [token.logprob for token in noted] == pytest.approx(logprobs.tolist(), abs=1e-4)
            return
    pytest.fail("no answer decodes to its own tokens")


def test_streamed_logprobs_are_the_same(client):
    options = {"max_tokens": 25, "seed": 2, "logprobs": True, "top_logprobs": 2}
    _, pieces = streamed(client, **options)
    noted = [token for p in pieces if p.choices[0].logprobs for token in p.choices[0].logprobs.content]
    whole = ask(client, **options).choices[0].logprobs.content
    assert [(t.token, len(t.top_logprobs)) for t in noted] == [(t.token, 2) for t in whole]
    assert [t.logprob for t in noted] == pytest.approx([t.logprob for t in whole], abs=1e-5)


def test_no_logprobs_unless_asked_for(client):
    assert ask(client, max_tokens=3).choices[0].logprobs is None


# --------------------------------------------------------------------------------------------------------- raw texts


def raw(policy, text: str, seed: int, count: int, n: int = 1) -> list[str]:
    """Continuations by the sampler itself."""
    ids = policy.tokenizer.encode(text)
    seeds = [derived_seed(seed, str(ids), 1.0, k) for k in range(n)]
    eos_id = policy.tokenizer.eos_id
    found = generate(policy.model, [ids] * n, eos_id=eos_id, max_new_tokens=count, seeds=seeds)
    return [policy.tokenizer.decode(one.ids) for one in found]


def test_completions_continue_texts_without_the_template(client, policy):
    prompts = ["Boil 3", "minutes."]
    answer = client.completions.create(model="policy", prompt=prompts, max_tokens=20, seed=5, n=2)
    assert [c.text for c in answer.choices] == [text for p in prompts for text in raw(policy, p, 5, 20, n=2)]
    assert answer.usage.prompt_tokens == sum(len(policy.tokenizer.encode(p)) for p in prompts)
    ids = policy.tokenizer.encode("Boil 3")
    again = client.completions.create(model="policy", prompt=ids, max_tokens=20, seed=5)
    assert again.choices[0].text == answer.choices[0].text
    pieces = client.completions.create(model="policy", prompt="Boil 3", max_tokens=20, seed=5, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


def test_completion_logprobs(client, policy):
    answer = client.completions.create(model="policy", prompt="Boil 3", max_tokens=15, seed=5, logprobs=3)
    (choice,) = answer.choices
    noted = choice.logprobs
    assert len(noted.tokens) == len(noted.token_logprobs) == len(noted.top_logprobs) == len(noted.text_offset) > 3
    for token, logprob, best, start in zip(*map(noted.__getattribute__, (
        "tokens", "token_logprobs", "top_logprobs", "text_offset")), strict=True):  # fmt: skip
        assert len(best) == 3
        assert logprob <= max(best.values()) + 1e-5
        assert token.startswith("bytes:") or choice.text[start:].lstrip("\ufffd").startswith(token)


def test_an_empty_completion_prompt_begins_a_document(client, policy):
    answer = client.completions.create(model="policy", prompt="", max_tokens=10, temperature=0)
    eos_id = policy.tokenizer.eos_id
    (expected,) = generate(policy.model, [[eos_id]], eos_id=eos_id, max_new_tokens=10, seeds=[0], temperature=0)
    assert answer.choices[0].text == policy.tokenizer.decode(expected.ids)


# --------------------------------------------------------------------------------------------------------- stop texts


def test_an_answer_ends_before_the_first_stop_text(client, policy):
    checked = 0
    for seed in range(8):
        (full,) = policy.generate([ASKED], max_new_tokens=60, seed=seed)
        for at, length in ((3, 1), (5, 4), (20, 7)):
            stop = full.text[at : at + length]
            if not stop:
                continue
            checked += 1
            expected = full.text[: full.text.find(stop)]
            options = {"max_tokens": 60, "seed": seed, "stop": [stop, "never said"]}
            answer = ask(client, logprobs=True, **options)
            (choice,) = answer.choices
            assert (choice.message.content, choice.finish_reason) == (expected, "stop")
            assert answer.usage.completion_tokens <= full.n_tokens
            assert len(choice.logprobs.content) <= answer.usage.completion_tokens
            text, pieces = streamed(client, **options)
            assert text == expected
            assert pieces[-1].choices[0].finish_reason == "stop"
    assert checked > 10


def test_a_stop_text_that_never_comes_changes_nothing(client, policy):
    (full,) = policy.generate([ASKED], max_new_tokens=30, seed=1)
    ending = full.text[-3:] + "…"  # the end of the answer looks like its beginning, and is passed on all the same
    (choice,) = ask(client, max_tokens=30, seed=1, stop=ending).choices
    assert (choice.message.content, choice.finish_reason) == (full.text, full.finish_reason)


# ------------------------------------------------------------------------------------------------------------- errors


def test_a_too_long_prompt_is_a_clear_error(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [{"role": "user", "content": "Boil 3 eggs. " * 60}])
    assert caught.value.code == "context_length_exceeded"
    assert f"this model's context is {CONTEXT} tokens" in caught.value.message
    with pytest.raises(openai.BadRequestError, match="in the prompt, 95 in the answer"):
        ask(client, max_tokens=95, stream=True)


def test_without_max_tokens_the_answer_ends_at_the_context(client, policy):
    messages = [{"role": "user", "content": "Boil 3 eggs. " * 9}]
    used = len(policy.tokenizer.prompt_ids(messages))
    assert 40 < used < CONTEXT
    lengths = [ask(client, messages, seed=seed).usage.completion_tokens for seed in range(4)]
    assert max(lengths) <= CONTEXT - used


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-9' does not exist; there are policy, sft") as caught:
        ask(client, model="gpt-9")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": "x"}, "seed"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, None),
        ({"stop": [""]}, None),
        ({"stop": ["x"] * 17}, None),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"beams": 4}}, "beams"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}, "messages.0.content"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "9"}]}, None),
    ],
)
def test_a_bad_parameter_is_named(client, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **options)
    assert caught.value.type == "invalid_request_error"
    if param:
        assert caught.value.param.startswith(param)
        assert param.split(".")[0] in caught.value.message


def test_what_asks_for_nothing_is_taken(client):
    answer = ask(client, max_tokens=2, presence_penalty=0, logit_bias={}, user="ann", metadata={"a": "b"}, store=False)
    assert answer.choices


def test_a_message_may_come_in_parts(client):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Boil 3 "}, {"type": "text", "text": "eggs"}]}]
    options = {"max_tokens": 10, "temperature": 0}
    assert ask(client, parts, **options).choices[0].message == ask(client, **options).choices[0].message


@pytest.mark.parametrize("prompt", [[], [[]], [9999], [-1], [1.5]])
def test_prompts_that_are_none(client, prompt):
    if prompt == [[]]:  # an empty list of tokens is an empty text
        assert client.completions.create(model="policy", prompt=prompt, max_tokens=2).choices
        return
    with pytest.raises(openai.BadRequestError, match=r"prompt|token id"):
        client.completions.create(model="policy", prompt=prompt, max_tokens=2)


# -------------------------------------------------------------------------------------------------------- many at once


def test_32_concurrent_streams_finish_batched_and_each_as_if_alone(address, service, policy):
    count, tokens = 32, 40
    prompts = [f"Boil {i} eggs" for i in range(count)]
    expected = [policy.generate([p], max_new_tokens=tokens, seed=i)[0] for i, p in enumerate(prompts)]
    steps = value(service, "wukong_batch_size_count", model="policy")
    drawn = value(service, "wukong_answer_tokens_total", model="policy")

    async def one(client, number: int) -> str:
        messages = [{"role": "user", "content": prompts[number]}]
        text = ""
        async for piece in await client.chat.completions.create(
            model="policy", messages=messages, max_tokens=tokens, seed=number, stream=True
        ):
            text += piece.choices[0].delta.content or ""
        return text

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", timeout=240) as client:
            return await asyncio.gather(*(one(client, number) for number in range(count)))

    assert asyncio.run(together()) == [one.text for one in expected]
    steps = value(service, "wukong_batch_size_count", model="policy") - steps
    drawn = value(service, "wukong_answer_tokens_total", model="policy") - drawn
    assert drawn == sum(one.n_tokens for one in expected)
    assert drawn / steps > 3, f"{drawn} tokens in {steps} steps are hardly batched"
