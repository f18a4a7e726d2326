"""One recommendation for all tools: the training stages write how to sample a model, everything else does so."""

import asyncio
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

import wukong
from tests.stages.tiny_data import FAST, demonstrations, tokenised, write_jsonl
from wukong import chat
from wukong.errors import UsageError
from wukong.files import read_json
from wukong.model.hub import load_policy, recommended_sampling, save_policy
from wukong.records import Comparison, Prompt, Response, Vote, as_messages, read_records, write_records
from wukong.sampling import OWN_DISTRIBUTION, SamplingParameters
from wukong.serve.protocol import ChatRequest, parse
from wukong.serve.service import Drawing, Service, load_model
from wukong.stages import evaluate, sample
from wukong.stages.direct.dpo import DPOOptions
from wukong.stages.direct.dpo import run as dpo
from wukong.stages.direct.kto import KTOOptions
from wukong.stages.direct.kto import run as kto
from wukong.stages.online.bestofn import BestOfNOptions
from wukong.stages.online.bestofn import run as bestofn
from wukong.stages.online.grpo import GRPOOptions
from wukong.stages.online.grpo import run as grpo
from wukong.stages.online.ppo import PPOOptions
from wukong.stages.online.ppo import run as ppo
from wukong.stages.online.reinforce import ReinforceOptions
from wukong.stages.online.reinforce import run as reinforce
from wukong.stages.online.rloo import RLOOOptions
from wukong.stages.online.rloo import run as rloo
from wukong.stages.pretrain import PretrainOptions
from wukong.stages.pretrain import run as pretrain
from wukong.stages.sft import SFTOptions
from wukong.stages.sft import run as sft
from wukong.studies import compare, frontier
from wukong.web.streams import SamplingBody

QUESTION = "say 1"
SHARP, GREEDY = SamplingParameters(0.5, 3, 0.9), SamplingParameters(0.0)
PROMPTS = 6


@pytest.fixture(scope="module")
def models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models with the same weights: one that recommends nothing, `sharp`, and `greedy`."""
    root = tmp_path_factory.mktemp("recommended")
    policy, tokenizer = load_policy(tiny_models / "sft")
    for name, sampling in (("silent", None), ("sharp", SHARP), ("greedy", GREEDY)):
        save_policy(root / name, policy, tokenizer, sampling=sampling)
    write_records(root / "prompts.jsonl", [Prompt(messages=as_messages(f"say {n}")) for n in range(PROMPTS)])
    return root


def judge(prompts, texts) -> list[float]:
    return [float(len(text) % 5) for text in texts]


def generation_config(directory: Path) -> dict:
    content = read_json(directory / "generation_config.json")
    return {name: content.get(name) for name in ("do_sample", "temperature", "top_k", "top_p")}


def written(temperature: float) -> dict:
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


# --------------------------------------------------------------------------------------------------- what is written


def test_pretraining_and_instruction_tuning_write_it_and_hand_it_on(tmp_path: Path) -> None:
    tokens = tokenised(tmp_path)
    fixed = {"data": tokens, "model": "test", "tokens": 512, "batch_tokens": 256, "sample_prompts": [], **FAST}
    pretrain(PretrainOptions(out=tmp_path / "plain", **fixed))
    assert generation_config(tmp_path / "plain") == written(1.0)
    pretrain(PretrainOptions(out=tmp_path / "base", recommended_temperature=0.5, **fixed))
    assert generation_config(tmp_path / "base") == written(0.5)
    data = [str(write_jsonl(tmp_path / "data.jsonl", demonstrations()))]
    taught = {"model": str(tmp_path / "base"), "data": data, "epochs": 0.2, **FAST}
    sft(SFTOptions(out=tmp_path / "sft", **taught))
    assert generation_config(tmp_path / "sft") == written(0.5)
    sft(SFTOptions(out=tmp_path / "other", recommended_temperature=0, **taught))
    assert generation_config(tmp_path / "other") == {**dict.fromkeys(written(1)), "do_sample": False}


ONLINE = {
    "ppo": (ppo, PPOOptions), "reinforce": (reinforce, ReinforceOptions), "rloo": (rloo, RLOOOptions),
    "grpo": (grpo, GRPOOptions), "bestofn": (bestofn, BestOfNOptions),
}  # fmt: skip


@pytest.mark.parametrize("name", ONLINE)
def test_online_algorithms_recommend_the_temperature_of_their_rollouts(name, models, tmp_path: Path) -> None:
    train, options = ONLINE[name]
    fixed = {
        "model": str(models / "sharp"), "prompts": [str(models / "prompts.jsonl")], "rewards": [f"{__name__}:judge"],
        "episodes": 16, "batch_size": 8, "max_new_tokens": 8, "save_every": 1, "missing_eos_score": None, **FAST,
    }  # fmt: skip
    train(options(out=tmp_path / "a", temperature=0.8, **fixed))
    for place in (tmp_path / "a", tmp_path / "a" / "policies" / "iteration-000001"):
        assert generation_config(place) == written(0.8)  # and untruncated, whatever the model before it recommends
    train(options(out=tmp_path / "b", temperature=0.8, recommended_temperature=0.3, **fixed))
    assert generation_config(tmp_path / "b") == written(0.3)
    for kept in ("a", "b"):
        assert (tmp_path / kept / "model.safetensors").read_bytes() == (
            tmp_path / "a" / "model.safetensors"
        ).read_bytes()


def test_offline_algorithms_recommend_the_temperature_of_their_answers(models, tmp_path: Path) -> None:
    pairs = [Comparison(prompt=as_messages(f"Q{n}"), chosen="a", rejected="b") for n in range(4)]
    write_records(tmp_path / "pairs.jsonl", pairs)
    votes = [Vote(prompt=as_messages(f"Q{n}"), response="ab"[n % 2], vote=(1, -1)[n % 2]) for n in range(4)]
    write_records(tmp_path / "votes.jsonl", votes)
    for train, options, data in ((dpo, DPOOptions, "pairs"), (kto, KTOOptions, "votes")):
        fixed = {
            "model": str(models / "sharp"),
            "valid_fraction": 0.0,
            "data": [str(tmp_path / f"{data}.jsonl")],
            **FAST,
        }
        train(options(out=tmp_path / data, temperature=0.7, **fixed))
        assert generation_config(tmp_path / data) == written(0.7)
        train(options(out=tmp_path / f"{data}-2", recommended_temperature=0.4, **fixed))
        assert generation_config(tmp_path / f"{data}-2") == written(0.4)


# ------------------------------------------------------------------------------------------------- what is understood


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, OWN_DISTRIBUTION),
        ({"eos_token_id": 1, "max_length": 50, "repetition_penalty": 1.0, "num_beams": 1}, OWN_DISTRIBUTION),
        ({"do_sample": True}, OWN_DISTRIBUTION),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40}, SamplingParameters(0.6, 40, 0.9)),
        ({"temperature": 2}, SamplingParameters(2.0)),
        ({"do_sample": False}, GREEDY),
        ({"do_sample": False, "temperature": 0.6, "top_k": 5}, GREEDY),
        ({"temperature": 0}, GREEDY),
        ({"temperature": 0.7, "top_p": 0}, GREEDY),
        ({"temperature": 0.7, "top_k": -1}, SamplingParameters(0.7)),
        ({"temperature": None, "top_k": None, "top_p": None, "do_sample": None}, OWN_DISTRIBUTION),
    ],
)
def test_a_generation_config_of_others_is_honoured(models, tmp_path, content, expected):
    shutil.copytree(models / "silent", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(content))
    found = recommended_sampling(tmp_path / "model").unless_given("m", None)
    assert found.as_dict() == expected.as_dict()
    assert found.is_recommended


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"temperature": "0.7"}, "temperature is '0.7', not a number from 0 to 100"),
        ({"temperature": True}, "temperature is 'True'"),
        ({"temperature": -1}, "temperature is '-1'"),
        ({"temperature": 10**400}, "temperature is '1000"),
        ({"top_k": 2.5}, "top_k is '2.5'"),
        ({"top_k": -2}, "top_k is '-2', not a number from -1"),
        ({"top_p": 1.5}, "top_p is '1.5', not a number from 0 to 1"),
        ({"do_sample": "yes"}, "do_sample is 'yes', neither true nor false"),
        ([], "not a JSON object"),
    ],
)
def test_a_generation_config_of_wrong_types_is_refused(models, tmp_path, content, message):
    shutil.copytree(models / "silent", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(UsageError) as error:
        recommended_sampling(tmp_path / "model")
    assert message in str(error.value)
    assert "generation_config.json: " in str(error.value)


@pytest.mark.parametrize(
    "wish", [{"repetition_penalty": 1.3}, {"num_beams": 4}, {"min_p": 0.1}, {"bad_words_ids": [[1]]}]
)
def test_what_is_not_supported_is_refused_unless_a_temperature_is_given(models, tmp_path, wish):
    shutil.copytree(models / "silent", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(wish))
    policy = wukong.load_policy(tmp_path / "model", device="cpu", precision="float32")
    with pytest.raises(UsageError, match=f"asks for {next(iter(wish))} .*; give a temperature"):
        policy.generate([QUESTION], max_new_tokens=4)
    assert policy.generate([QUESTION], max_new_tokens=4, temperature=1.0)


def test_a_temperature_replaces_the_recommendation_and_the_others_their_part():
    assert SHARP.unless_given("m", 0.7) == SamplingParameters(0.7)
    assert SHARP.unless_given("m", 0.7, 5) == SamplingParameters(0.7, 5)
    assert SHARP.unless_given("m", None, 0) == SamplingParameters(0.5, 0, 0.9)
    assert SHARP.unless_given("m", None, None, 1.0) == SamplingParameters(0.5, 3, 1.0)


def test_transformers_understands_what_is_written(models):
    transformers = pytest.importorskip("transformers")
    sharp = transformers.GenerationConfig.from_pretrained(models / "sharp")
    assert (sharp.do_sample, sharp.temperature, sharp.top_k, sharp.top_p) == (True, 0.5, 3, 0.9)
    assert transformers.GenerationConfig.from_pretrained(models / "greedy").do_sample is False


# ----------------------------------------------------------------------------------------------- what every tool does


def answers(models: Path, name: str, **drawing) -> list[str]:
    policy = wukong.load_policy(models / name, device="cpu", precision="float32")
    return [one.text for one in policy.generate([QUESTION] * 3, max_new_tokens=12, seed=3, **drawing)]


def test_python_samples_as_recommended(models):
    assert answers(models, "sharp") == answers(models, "silent", temperature=0.5, top_k=3, top_p=0.9)
    assert len(set(answers(models, "greedy"))) == 1
    assert (
        answers(models, "sharp", temperature=1) == answers(models, "silent") == answers(models, "greedy", temperature=1)
    )


def sampled(models: Path, out: Path, *names: str, **more) -> list[Response]:
    fixed = {"models": [str(models / name) for name in names], "prompts": [str(models / "prompts.jsonl")]}
    fixed |= {"max_new_tokens": 8, "responses_per_prompt": 2, "precision": "float32"}
    sample.run(sample.SampleOptions(out=out, **{**fixed, **more}))
    return read_records(out, Response)


def test_sample_draws_each_model_as_it_recommends_and_says_so(models, tmp_path, capsys):
    found = sampled(models, tmp_path / "r.jsonl", "silent", "sharp", "greedy")
    by_model = {Path(one.model).name: one.sampling.model_dump(exclude={"seed"}) for one in found}
    assert by_model == {"silent": OWN_DISTRIBUTION.as_dict(), "sharp": SHARP.as_dict(), "greedy": GREEDY.as_dict()}
    said = " ".join(capsys.readouterr().err.split())
    assert "sharp with temperature 0.5, top-k 3, top-p 0.9 (the model's own)" in said
    assert "greedy with temperature 0 (the model's own)" in said
    told = sampled(models, tmp_path / "t.jsonl", "sharp", temperatures=[0.5], top_k=3, top_p=0.9)
    assert [one.text for one in told] == [one.text for one in found if one.model.endswith("sharp")]


def evaluated(models: Path, out: Path, **more) -> dict:
    fixed = {"models": [f"{name}={models / name}" for name in ("silent", "sharp", "greedy")], "reference": "silent"}
    fixed |= {"prompts": [str(models / "prompts.jsonl")], "judge": f"{__name__}:judge", "max_new_tokens": 8}
    evaluate.run(evaluate.EvaluateOptions(out=out, precision="float32", **{**fixed, **more}))
    return read_json(out / "evaluation.json")


def test_evaluate_and_compare_sample_each_model_as_it_recommends_and_record_it(models, tmp_path, capsys):
    found = evaluated(models, tmp_path / "evaluation")
    expected = {"silent": OWN_DISTRIBUTION.as_dict(), "sharp": SHARP.as_dict(), "greedy": GREEDY.as_dict()}
    assert {name: one["sampling"] for name, one in found["models"].items()} == expected
    assert found["temperature"] is None
    assert found["models"]["silent"]["kl"] == pytest.approx(0, abs=1e-4)
    assert found["models"]["sharp"]["kl"] is found["models"]["greedy"]["kl"] is None  # no samples of the distribution
    assert "answers of sharp: temperature 0.5, top-k 3, top-p 0.9 (the model's own)" in capsys.readouterr().err
    names = ("silent", "sharp", "greedy")
    options = {"models": [f"{name}={models / name}" for name in names], "max_new_tokens": 8, "precision": "float32"}
    options |= {"prompts": [str(models / "prompts.jsonl")], "judge": f"{__name__}:judge"}
    compare.run(compare.CompareOptions(out=tmp_path / "comparison", **options))
    compared = read_json(tmp_path / "comparison" / "comparison.json")
    assert {name: one["sampling"] for name, one in compared["models"].items()} == expected
    assert "the models are sampled differently" in capsys.readouterr().err
    lines = [
        [json.loads(line)["answers"] for line in (tmp_path / place / "answers.jsonl").read_text().splitlines()]
        for place in ("evaluation", "comparison")
    ]
    assert [[a[n]["text"] for n in names] for a in lines[0]] == [[a[n]["text"] for n in names] for a in lines[1]]


def test_a_temperature_given_to_evaluate_holds_for_all_models(models, tmp_path, capsys):
    found = evaluated(models, tmp_path / "evaluation", temperature=0.8)
    assert {json.dumps(one["sampling"]) for one in found["models"].values()} == {
        json.dumps(SamplingParameters(0.8).as_dict())
    }
    assert found["temperature"] == 0.8
    assert "answers of sharp: temperature 0.8\n" in capsys.readouterr().err
    assert len({one["length_mean"] for one in found["models"].values()}) == 1  # the same weights, the same answers


def test_frontier_refuses_models_whose_recommendation_has_no_kl(models, tmp_path):
    options = frontier.FrontierOptions(
        runs=[f"mine={models / 'greedy'}"], reference=str(models / "silent"), prompts=[str(models / "prompts.jsonl")],
        gold=f"{__name__}:judge", proxy=f"{__name__}:judge", max_new_tokens=8, out=tmp_path / "out",
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"greedy: answers at temperature 0 .*have no KL; give the --temperature"):
        frontier.run(options)


def chatted(models: Path, monkeypatch, capsys, name: str, **more) -> tuple[str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    chat.run(chat.ChatOptions(models=[str(models / name)], max_new_tokens=12, precision="float32", **more))
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_chat_draws_as_recommended_and_says_so(models, monkeypatch, capsys):
    out, err = chatted(models, monkeypatch, capsys, "sharp")
    told, _ = chatted(models, monkeypatch, capsys, "silent", temperature=0.5, top_k=3, top_p=0.9)
    assert out == told
    assert "sharp: temperature 0.5, top-k 3, top-p 0.9 (the model's own)" in err
    other, said = chatted(models, monkeypatch, capsys, "sharp", temperature=1.0)
    assert other == chatted(models, monkeypatch, capsys, "silent")[0]
    assert "sharp: temperature 1\n" in said


@pytest.fixture(scope="module")
def service(models):
    names = ("silent", "sharp", "greedy")
    with Service({name: load_model(name, str(models / name), "float32", "cpu") for name in names}) as running:
        yield running


def served(service: Service, name: str, drawing: Drawing) -> list[str]:
    async def ask() -> list[str]:
        return [one.text for one in await (await service.chat(name, QUESTION, drawing)).whole()]

    return asyncio.run(ask())


def test_the_server_draws_as_recommended_unless_the_request_says_otherwise(service):
    fixed = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "seed": 5, "n": 2}
    asked = parse(ChatRequest, fixed).drawing()
    told = parse(ChatRequest, {**fixed, "temperature": 0.5, "top_k": 3, "top_p": 0.9}).drawing()
    assert served(service, "sharp", asked) == served(service, "silent", told)
    own = parse(ChatRequest, {**fixed, "temperature": 1}).drawing()
    assert served(service, "sharp", own) == served(service, "silent", asked)
    assert len(set(served(service, "greedy", asked))) == 1


def test_the_studio_draws_as_recommended_and_records_it(service):
    sharp = service.model("sharp")
    assert SamplingBody().drawing(sharp) == Drawing(32, 0.5, 3, 0.9)
    assert SamplingBody(temperature=0.8).drawing(sharp) == Drawing(32, 0.8, 0, 1.0)
    assert SamplingBody(top_k=0).drawing(sharp) == Drawing(32, 0.5, 0, 0.9)
