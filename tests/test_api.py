"""The Python interface, on tiny random models."""

import inspect
import json
import shutil

import pytest
import torch

import wukong
from wukong.errors import DataError, UsageError
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.rollout import generate
from wukong.seeds import derived_seed
from wukong.tokenizer import Tokenizer

SIZES = {"vocab_size": 280, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
PROMPTS = ["How to boil eggs", "Peel", [{"role": "user", "content": "How long"}, {"role": "assistant", "content": "9"},
           {"role": "user", "content": "Why?"}]]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"Boil {n} eggs for {n % 9} minutes." for n in range(50)], 280, template="plain")


@pytest.fixture(scope="module")
def directories(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    model, trunk = GPT2(GPT2Config(**SIZES)), GPT2(GPT2Config(**SIZES))
    with torch.no_grad():
        for parameter in [*model.parameters(), *trunk.parameters()]:
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    root = tmp_path_factory.mktemp("models")
    save_policy(root / "policy", model, tokenizer)
    save_reward(root / "reward", ScalarModel(trunk), tokenizer)
    return root


@pytest.fixture(scope="module")
def policy(directories):
    return wukong.load_policy(directories / "policy", device="cpu", precision="float32")


@pytest.fixture(scope="module")
def reward(directories):
    return wukong.load_reward(directories / "reward", device="cpu", precision="float32")


# ----------------------------------------------------------------------------------------------------------- generate


def test_a_response_does_not_depend_on_its_batch_mates(policy):
    together = policy.generate(PROMPTS, max_new_tokens=20, seed=1)
    alone = [policy.generate([prompt], max_new_tokens=20, seed=1)[0] for prompt in PROMPTS]
    backwards = policy.generate(PROMPTS[::-1], max_new_tokens=20, seed=1, batch_size=2)[::-1]
    assert together == alone == backwards
    assert len({response.text for response in together}) == 3


def test_the_seed_decides(policy):
    first, again, other = (policy.generate(PROMPTS, max_new_tokens=20, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [r.text for r in first] != [r.text for r in other]


def test_a_repeated_prompt_gets_different_responses_the_first_as_alone(policy):
    responses = policy.generate(["Peel"] * 3, max_new_tokens=20)
    assert len({response.text for response in responses}) == 3
    assert len({response.id for response in responses}) == 3
    assert responses[0] == policy.generate(["Peel"], max_new_tokens=20)[0]


def test_a_response_says_how_it_came_about(policy, directories):
    (response,) = policy.generate(["Peel"], max_new_tokens=5, temperature=0.5, top_k=40, top_p=0.9)
    assert response.messages[0].content == "Peel"
    assert response.model == str(directories / "policy")
    assert (response.sampling.temperature, response.sampling.top_k, response.sampling.top_p) == (0.5, 40, 0.9)
    assert (response.finish_reason, response.n_tokens) in [("length", 5), *(("stop", n) for n in range(1, 6))]


@torch.no_grad()
def test_greedy_takes_the_likeliest_token(policy, tokenizer):
    (response,) = policy.generate(["Peel"], max_new_tokens=6, temperature=0)
    ids = tokenizer.prompt_ids("Peel")
    written = []
    for _ in range(6):
        written.append(int(policy.model.logits(policy.model(torch.tensor([ids + written])))[0, -1].argmax()))
        if written[-1] == tokenizer.eos_id:
            break
    assert response.text == tokenizer.decode(written)


def test_the_draw_is_that_of_the_sample_stage(policy, tokenizer):
    (response,) = policy.generate(["Peel"], max_new_tokens=6, temperature=1, seed=4)
    seed = derived_seed(4, response.prompt_id, 1.0, 0)
    (sampled,) = generate(
        policy.model, [tokenizer.prompt_ids("Peel")], eos_id=tokenizer.eos_id, max_new_tokens=6, seeds=[seed]
    )
    assert response.text == tokenizer.decode(sampled.ids)
    assert response.sampling.seed == seed


def test_an_end_token_ends_the_response(policy, tokenizer, directories):
    torch.manual_seed(0)
    model = GPT2(GPT2Config(**SIZES))
    with torch.no_grad():  # whatever is read: the hidden state is (1, ..., 1), and the end token's row meets it best
        model.ln_f.weight.zero_()
        model.ln_f.bias.fill_(1)
        model.wte.weight[tokenizer.eos_id].fill_(10)
    save_policy(directories / "brief", model, tokenizer)
    (response,) = wukong.load_policy(directories / "brief", device="cpu").generate(["Peel"])
    assert (response.text, response.finish_reason, response.n_tokens) == ("", "stop", 1)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("Peel", {}, "expected a list of prompts"),
        ([{"role": "user", "content": "Peel"}], {}, "expected a list of prompts"),
        (["Peel"], {"max_new_tokens": 0}, "max_new_tokens 0"),
        (["Peel"], {"max_new_tokens": 64}, "max_new_tokens 64"),
        (["Peel"], {"temperature": -1}, "temperature"),
        (["Peel"], {"top_p": 0}, "top_p"),
        (["Boil 3 eggs. " * 40], {"max_new_tokens": 8}, "more than 56"),
        ([[]], {}, "a prompt must end with"),
        ([[{"role": "nobody", "content": "x"}]], {}, "role"),
    ],
)
def test_unusable_prompts_and_options_are_refused(policy, prompts, options, message):
    with pytest.raises(UsageError, match=message):
        policy.generate(prompts, **options)


def test_no_prompts_no_responses(policy, reward):
    assert policy.generate([]) == []
    assert policy.logprobs([]) == []
    assert reward.score([]) == []


# ----------------------------------------------------------------------------------------------------------- logprobs


@torch.no_grad()
def by_hand(policy, prompt, response) -> list[float]:
    """Each token's log-probability from a forward pass of its own, over the whole vocabulary."""
    ids, expected = policy.tokenizer.prompt_ids(prompt), []
    for token in [*policy.tokenizer.encode(response), policy.tokenizer.eos_id]:
        logits = policy.model.logits(policy.model(torch.tensor([ids])))[0, -1].double()
        expected.append(float(logits[token] - logits.logsumexp(0)))
        ids = [*ids, token]
    return expected


def test_logprobs_equal_one_forward_pass_a_token(policy):
    pairs = [(PROMPTS[0], "Boil 3 eggs."), (PROMPTS[1], ""), (PROMPTS[2], "Peel 7 minutes"), (PROMPTS[0], "No")]
    for pair, logprobs in zip(pairs, policy.logprobs(pairs), strict=True):
        assert logprobs.ndim == 1
        assert logprobs.dtype == torch.float32
        torch.testing.assert_close(logprobs, torch.tensor(by_hand(policy, *pair)), atol=1e-4, rtol=0)


def test_an_empty_response_has_no_logprobs_alone_or_in_company(policy):
    assert [len(part) for part in policy.logprobs([("Peel", "")], finished=False)] == [0]
    both = policy.logprobs([("Peel", ""), ("Peel", "Boil")], finished=False)
    assert len(both[0]) == 0
    torch.testing.assert_close(both[1], policy.logprobs([("Peel", "Boil")], finished=False)[0], atol=1e-4, rtol=0)


def test_logprobs_without_the_end_token(policy):
    (whole,), (cut,) = policy.logprobs([("Peel", "Boil")]), policy.logprobs([("Peel", "Boil")], finished=False)
    torch.testing.assert_close(cut, whole[:-1], atol=1e-6, rtol=0)


def test_special_characters_in_a_response_are_characters(policy):
    (logprobs,) = policy.logprobs([("Peel", "a<|endoftext|>")])
    assert len(logprobs) == len(policy.tokenizer.encode("a<|endoftext|>")) + 1 > 3


@pytest.mark.parametrize("method", ["logprobs", "score"])
def test_pairs_that_do_not_fit_are_refused(policy, reward, method):
    call = getattr(policy if method == "logprobs" else reward, method)
    with pytest.raises(UsageError, match=r"pair 2: .* context of 64"):
        call([("Peel", "x"), ("Peel", "Boil 3 eggs. " * 40)])
    with pytest.raises(UsageError, match=r"a list of \(prompt, response\) pairs"):
        call("Peel")


# -------------------------------------------------------------------------------------------------------------- score


@torch.no_grad()
def test_scores_equal_the_head_at_the_last_token_without_the_end_token(reward, tokenizer):
    pairs = [(PROMPTS[0], "Boil 3 eggs."), (PROMPTS[1], "No"), (PROMPTS[2], "Peel 7 minutes")]
    for (prompt, response), score in zip(pairs, reward.score(pairs), strict=True):
        ids = tokenizer.prompt_ids(prompt) + tokenizer.encode(response)
        hidden = reward.model.trunk(torch.tensor([ids]))[0, -1]
        expected = float(hidden @ reward.model.score.weight[0] + reward.model.score.bias[0])
        assert score == pytest.approx(expected, abs=1e-5)


# ------------------------------------------------------------------------------------------------------- the package


def test_wrong_models_are_refused(directories, tmp_path):
    with pytest.raises(UsageError, match="holds a reward model"):
        wukong.load_policy(directories / "reward")
    with pytest.raises(UsageError, match="holds a language model"):
        wukong.load_reward(directories / "policy")
    with pytest.raises(UsageError, match="no such directory"):
        wukong.load_policy(tmp_path / "nowhere")


def test_every_public_name_is_there_and_documented():
    assert set(wukong.__all__) <= set(dir(wukong))
    for name in wukong.__all__:
        public = getattr(wukong, name)
        assert inspect.getdoc(public), name
        if inspect.isfunction(public):
            hints = inspect.signature(public)
            assert hints.return_annotation is not inspect.Signature.empty, name
    with pytest.raises(AttributeError, match="no attribute 'load_polisy'"):
        _ = wukong.load_polisy


def test_readers_raise_the_packages_own_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "Peel", "output": 3}\n{"instruction": "Peel"}\n')
    with pytest.raises(wukong.DataError, match=r"a\.jsonl:2: field 'output'") as caught:
        wukong.read_instructions(tmp_path / "a.jsonl")
    assert isinstance(caught.value, wukong.WukongError)
    assert isinstance(caught.value, DataError)


def test_an_answer_ends_at_any_of_the_end_tokens_that_the_model_names(directories, tmp_path):
    shutil.copytree(directories / "policy", tmp_path / "many")
    (tmp_path / "many" / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(280))}))
    for response in wukong.load_policy(tmp_path / "many", device="cpu").generate(["Boil"] * 4, max_new_tokens=9):
        assert (response.n_tokens, response.finish_reason) == (1, "stop")
