"""Sampling from models and endpoints, and the numbers of an evaluation."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from wukong.errors import DataError, RunError, UsageError
from wukong.feedback.annotators import load_judge
from wukong.model.hub import load_policy
from wukong.records import Prompt, Response, as_messages, read_records, write_records
from wukong.rollout import Sampled
from wukong.stages import evaluate, sample, sft
from wukong.stages.evaluate import EvaluateOptions, length_controlled, pick_best
from wukong.stages.sample import SampleOptions
from wukong.stages.sft import SFTOptions


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    write_records(
        tmp_path / "p.jsonl", [Prompt(messages=as_messages(f"say {i}"), source=f"s{i % 2}") for i in range(6)]
    )
    return str(tmp_path / "p.jsonl")


def test_k_responses_for_each_model_and_temperature(tmp_path: Path, prompts: str, tiny_models: Path) -> None:
    models = [str(tiny_models / name) for name in ("sft", "other")]
    fixed = {"prompts": [prompts], "models": models, "max_new_tokens": 8, "precision": "float32"}
    sample.run(SampleOptions(out=tmp_path / "r.jsonl", responses_per_prompt=3, temperatures=[0.5, 1.0], **fixed))
    found = read_records(tmp_path / "r.jsonl", Response)
    assert len(found) == 6 * 2 * 2 * 3
    assert len({r.id for r in found}) == len(found)
    assert [r.prompt_id for r in found] == sorted((r.prompt_id for r in found), key=[r.prompt_id for r in found].index)
    assert all(r.n_tokens == 8 or r.finish_reason == "stop" for r in found)
    # more prompts, fewer responses: those that remain are the same
    write_records(tmp_path / "one.jsonl", read_records(prompts, Prompt)[:1])
    sample.run(
        SampleOptions(
            out=tmp_path / "o.jsonl", **{**fixed, "prompts": [str(tmp_path / "one.jsonl")], "models": models[:1]}
        )
    )
    few = read_records(tmp_path / "o.jsonl", Response)
    same = {(r.model, r.sampling.seed): r.text for r in found if r.sampling.temperature == 1.0}
    assert [same[r.model, r.sampling.seed] for r in few[:3]] == [r.text for r in few[:3]]


def test_a_prompt_longer_than_the_context_is_named(tmp_path: Path, tiny_models: Path) -> None:
    write_records(tmp_path / "p.jsonl", [Prompt(messages=as_messages("x" * 100))])
    options = SampleOptions(
        out=tmp_path / "r.jsonl",
        prompts=[str(tmp_path / "p.jsonl")],
        models=[str(tiny_models / "sft")],
        max_new_tokens=8,
    )
    with pytest.raises(DataError, match=r"prompt 1: .*100 tokens"):
        sample.run(options)


@pytest.fixture
def endpoint():
    """A server that speaks as much of the OpenAI API as sampling needs."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": "hello " + asked[-1]["messages"][-1]["content"]}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            body = json.dumps({**answer, "usage": usage}).encode()
            self.send_response(200 if asked[-1]["model"] == "m" else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()


def test_an_openai_compatible_endpoint_is_sampled(tmp_path: Path, prompts: str, endpoint, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)  # a server of one's own needs none
    url, asked = endpoint
    fixed = {"prompts": [prompts], "endpoint": url, "responses_per_prompt": 2, "limit": 2}
    sample.run(SampleOptions(out=tmp_path / "r.jsonl", endpoint_model="m", **fixed))
    found = read_records(tmp_path / "r.jsonl", Response)
    assert [r.text for r in found] == ["hello say 0"] * 2 + ["hello say 1"] * 2
    assert [r.n_tokens for r in found] == [2] * 4
    assert {a["temperature"] for a in asked} == {1.0}
    with pytest.raises(RunError, match="status 404"):
        sample.run(SampleOptions(out=tmp_path / "r2.jsonl", endpoint_model="other", **fixed))


def word_judge(prompts, texts):
    return [float(sum(map(ord, text)) % 7) for text in texts]


def run_evaluation(tmp_path: Path, prompts: str, place: Path, **changes) -> dict:
    options = {
        "out": tmp_path / "evaluation", "models": [f"sft={place / 'sft'}", f"policy={place / 'other'}"],
        "prompts": [prompts], "reference": "sft", "judge": f"{__name__}:word_judge",
        "reward_model": str(place / "reward"), "max_new_tokens": 8, "precision": "float32",
    }  # fmt: skip
    evaluate.run(EvaluateOptions(**{**options, **changes}))
    return json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())


def test_an_evaluation_agrees_with_its_own_answers(tmp_path: Path, prompts: str, tiny_models: Path) -> None:
    found = run_evaluation(tmp_path, prompts, tiny_models)
    lines = [json.loads(line) for line in (tmp_path / "evaluation" / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == found["n_prompts"] == 6
    a, b = ([line["answers"][name]["score"] for line in lines] for name in ("policy", "sft"))
    [by_judge, by_reward] = found["comparisons"]
    wins, ties = sum(x > y for x, y in zip(a, b, strict=True)), sum(x == y for x, y in zip(a, b, strict=True))
    assert (by_judge["wins"], by_judge["ties"], by_judge["losses"]) == (wins, ties, 6 - wins - ties)
    assert by_judge["win_rate"] == pytest.approx((wins + ties / 2) / 6)
    assert by_reward["judge"] == "reward_model"
    assert found["models"]["sft"]["kl"] == pytest.approx(0, abs=1e-5)  # the reference to itself
    assert found["models"]["policy"]["by_source"]["s0"]["n"] == 3


def test_an_evaluation_says_what_is_known_of_the_overlap_with_training(
    tmp_path: Path, prompts: str, tiny_models: Path, capsys
) -> None:
    """The policy was tuned on two of the six prompts; what the others' weights came from is not recorded."""
    taught = tmp_path / "taught.jsonl"
    lines = [{"instruction": text, "output": "yes"} for text in ("Say 1.", "say  4", "say 9")]
    taught.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"model": str(tiny_models / "sft"), "data": [str(taught)], "valid_fraction": 0.0, "tensorboard": False}
    sft.run(SFTOptions(out=tmp_path / "tuned", precision="float32", **settings))
    found = run_evaluation(
        tmp_path, prompts, tiny_models, models=[f"sft={tiny_models / 'sft'}", f"x={tmp_path / 'tuned'}"]
    )
    assert (found["overlap"]["prompts"], found["overlap"]["seen"]) == (6, 2)
    assert sorted(found["overlap"]["examples"]) == ["say 1", "say 4"]
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: 2 of 6 prompts were used in training, by sft (2)" in said
    assert f"{tiny_models / 'sft'} (its training data are not recorded)" in said


def test_kl_is_the_log_ratio_of_the_models_own_samples(
    tmp_path: Path, prompts: str, tiny_models: Path, byte_tokenizer
) -> None:
    found = run_evaluation(tmp_path, prompts, tiny_models, temperature=0.7)
    policy, reference = (load_policy(tiny_models / name)[0].eval() for name in ("other", "sft"))
    lines = [json.loads(line) for line in (tmp_path / "evaluation" / "answers.jsonl").read_text().splitlines()]
    ids = [byte_tokenizer.prompt_ids(line["messages"]) for line in lines]
    from wukong.rollout import generate
    from wukong.seeds import derived_seed

    seeds = [derived_seed(0, "evaluate", line["prompt_id"]) for line in lines]
    answers = generate(policy, ids, eos_id=byte_tokenizer.eos_id, max_new_tokens=8, seeds=seeds, temperature=0.7)
    total = 0.0
    for prompt, answer in zip(ids, answers, strict=True):
        sequence = torch.tensor([prompt + answer.ids])
        with torch.no_grad():
            p, q = ((m.logits(m(sequence))[0] / 0.7).log_softmax(-1) for m in (policy, reference))
        total += sum(float(p[len(prompt) - 1 + t, x] - q[len(prompt) - 1 + t, x]) for t, x in enumerate(answer.ids))
    assert found["models"]["policy"]["kl"] == pytest.approx(total / 6, abs=1e-4)


def test_length_control_takes_away_what_length_explains() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.normal(20, 20, size=4000)  # one side is longer, and longer wins
    outcome = (generator.random(4000) < 1 / (1 + np.exp(-2 * np.tanh(lengths / lengths.std())))).astype(float)
    assert outcome.mean() > 0.65
    assert length_controlled(outcome, lengths) == pytest.approx(0.5, abs=0.05)
    assert length_controlled(np.full(100, 0.5), np.zeros(100)) == pytest.approx(0.5)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("slope", [0.0, 1.5, -2.0])
def test_the_length_controlled_rate_has_no_bias(rate, slope) -> None:
    """100 data sets of 400 prompts made by the model itself: the mean of the fits is the rate that made them. (With a
    ridge of 1e-3 a rate of 97 % came out as 93 %.)"""
    generator, found = np.random.default_rng(0), []
    for _ in range(100):
        lengths = np.round(generator.normal(10, 30, size=400))
        logit = np.log(rate / (1 - rate)) + slope * np.tanh(lengths / lengths.std())
        fitted = length_controlled((generator.random(400) < 1 / (1 + np.exp(-logit))).astype(float), lengths)
        assert fitted is not None
        found.append(fitted)
    assert np.mean(found) == pytest.approx(rate, abs=0.005)


def test_the_length_controlled_rate_is_the_maximum_of_the_likelihood() -> None:
    """Equal lengths on half of the prompts, a longer by the same on the others: 3 of 4 won there, 1 of 2 here; two
    parameters fit both exactly. Ties are half of a win and a loss."""
    lengths = np.array([0.0] * 4 + [10.0] * 4)
    assert length_controlled(np.array([1.0, 1, 1, 0, 1, 1, 0, 0]), lengths) == pytest.approx(0.75)
    assert length_controlled(np.array([1.0, 1, 0.5, 0.5, 1, 1, 0, 0]), lengths) == pytest.approx(0.75)
    assert length_controlled(np.array([1.0, 1, 1, 0]), np.zeros(4)) == 0.75, "all lengths are equal"


@pytest.mark.parametrize(
    ("outcome", "lengths"),
    [
        ([1, 1, 1, 1, 1, 1], [3, -1, 2, 5, 0, 1]),  # all won
        ([0, 0, 0], [3, -1, 2]),
        ([1, 1, 1, 0, 0], [9, 7, 6, 5, -2]),  # whatever is longer wins
        ([1, 1, 1, 0, 0], [9, 7, 5, 5, -2]),  # all but: at one length both happen
        ([0, 0, 1, 1], [9, 7, 5, -2]),
        ([1, 0, 1, 1], [7, 7, 7, 7]),  # always longer by the same: equal length was never seen
    ],
)
def test_a_length_controlled_rate_that_the_outcomes_do_not_determine_is_not_given(outcome, lengths) -> None:
    assert length_controlled(np.array(outcome, dtype=float), np.array(lengths, dtype=float)) is None


def letters(prompts, texts):
    return [float(len(text)) for text in texts]


def test_the_best_of_n_is_a_policy_of_its_own(tmp_path: Path, prompts: str, tiny_models: Path) -> None:
    best = {
        "models": [f"{name}={tiny_models / 'sft'}" for name in ("sft", "bo4")],
        "best_of": ["bo4=4"],
        "best_of_reward": f"{__name__}:letters",
    }
    found = run_evaluation(tmp_path, prompts, tiny_models, judge=f"{__name__}:letters", **best)
    # The first of its four answers is the other model's only one. So by the number that picks it never loses, but
    # where one of its answers ended by itself and was picked for that.
    lines = [json.loads(line)["answers"] for line in (tmp_path / "evaluation" / "answers.jsonl").open()]
    picked = [(one["bo4"]["score"], one["sft"]["score"]) for one in lines if one["bo4"]["finish_reason"] == "length"]
    assert all(best >= single for best, single in picked)
    assert any(best > single for best, single in picked)
    assert found["models"]["bo4"]["kl"] == pytest.approx(1.386294 - 3 / 4)  # log n - (n - 1)/n
    assert found["models"]["sft"]["kl"] == pytest.approx(0, abs=1e-5)
    assert [found["models"][name]["best_of"] for name in ("sft", "bo4")] == [1, 4]


def test_the_best_is_picked_among_the_answers_that_ended(byte_tokenizer) -> None:
    def sampled(text: str, finished: bool) -> Sampled:
        return Sampled(byte_tokenizer.encode(text), [0.0] * len(text), finished)

    answers = [sampled("longest", False), sampled("abc", True), sampled("abd", True), sampled("x", True)]
    answers += [sampled(text, False) for text in ("a", "bb", "c", "dd")]
    two = [Prompt(messages=as_messages("p")), Prompt(messages=as_messages("q"))]
    picked = pick_best(answers, two, 4, load_judge(f"{__name__}:letters"), byte_tokenizer)
    assert [byte_tokenizer.decode(one.ids) for one in picked] == ["abc", "bb"]  # of equals the first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"best_of": ["nobody=4"]}, "--best-of nobody=4: write name=N"),
        ({"best_of": ["sft=1"]}, "N from 2 to 10,000"),
        ({"best_of": ["sft=99999"]}, "N from 2 to 10,000"),
        ({"best_of": ["sft=" + "9" * 5000]}, "N from 2 to 10,000"),
        ({"best_of": ["sft=4"]}, "--best-of and --best-of-reward go together"),
        ({"best_of_reward": "lexicon"}, "--best-of and --best-of-reward go together"),
    ],
)
def test_a_best_of_that_means_nothing_is_refused(tmp_path, prompts, tiny_models, changes, words) -> None:
    with pytest.raises(UsageError, match=words):
        run_evaluation(tmp_path, prompts, tiny_models, **changes)


def test_an_unnamed_reference_is_refused(tmp_path: Path, prompts: str, tiny_models: Path) -> None:
    with pytest.raises(UsageError, match="no model is named 'base'"):
        run_evaluation(tmp_path, prompts, tiny_models, reference="base")
