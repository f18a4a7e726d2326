"""Answers as tokens over HTTP: of the chat, of a battle once it is judged, of an evaluation."""

import pytest
import sqlalchemy as sa

import wukong
from tests.traced_runs import options_of, run, world
from wukong.feedback.store import chats
from wukong.feedback.store.tables import Annotator
from wukong.feedback.store.tasks import add_response
from wukong.records import Response, Sampling, as_messages, prompt_id
from wukong.stages import evaluate
from wukong.stages.evaluate import EvaluateOptions
from wukong.web.state import Settings

TALK = "a" * 32


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """runs/mine: sft/, reward/, policy/ by PPO, evaluation/ of the two."""
    root = tmp_path_factory.mktemp("runs") / "mine"
    root.mkdir()
    world(root, n_positions=256, template="alpaca")
    run(options_of(root, "ppo", "policy", episodes=16))
    models = [f"{name}={root / name}" for name in ("sft", "policy")]
    evaluate.run(EvaluateOptions(
        models=models, raw=["sft"], prompts=[str(root / "prompts.jsonl")], limit=3, judge="lexicon", max_new_tokens=8,
        temperature=0.7, reference="sft", reward_model=str(root / "reward"), out=root / "evaluation",
    ))  # fmt: skip
    return root


@pytest.fixture
def settings(root) -> Settings:
    return Settings(run_dir=root)


def response(name: str, model: str, text: str = "Hi") -> Response:
    messages = as_messages("say 1")
    sampling = Sampling(temperature=0.5, seed=7)
    return Response(
        id=name, prompt_id=prompt_id(messages), messages=messages, text=text, model=model, sampling=sampling
    )


def person(session, name: str) -> Annotator:
    return session.scalars(sa.select(Annotator).where(Annotator.name == name)).one()


def test_an_answer_of_the_chat_opens_as_tokens_for_its_person_and_for_admins(store, sign_in, root):
    ann, bob, admin = sign_in("Ann"), sign_in("Bob"), sign_in("Root", "admin")
    with store.write() as session:
        asked = chats.ask(session, person(session, "Ann"), TALK, None, "say 1")
        turns = {
            model: chats.answer(session, person(session, "Ann"), asked, response(model, model, text)).id
            for model, text in (("policy", "Hi"), ("sft", "Hi"), ("gone", "Hi"), ("policy ", ""))
        }
        question = asked.id
    expected = wukong.load_inspector(root / "policy")("say 1", "Hi", temperature=0.5)
    for reader in (ann, admin):
        (found,) = reader.post(f"/api/turns/{turns['policy']}/tokens", json={}).json()["responses"]
        assert found["tokens"] == ["H", "i", "<|endoftext|>"]
        assert found["kl"] == pytest.approx(expected.kl)
        assert found["end_scores"] == pytest.approx(expected.end_scores)
        assert (found["model"], found["reference"], found["reward_model"]) == ("policy", "sft", "reward")
    (found,) = ann.post(f"/api/turns/{turns['sft']}/tokens", json={}).json()["responses"]
    assert ("kl" in found, "end_scores" in found, len(found["logprobs"])) == (False, False, 3)
    for client, turn in ((bob, turns["policy"]), (ann, question), (ann, 999), (ann, turns["gone"])):
        assert client.post(f"/api/turns/{turn}/tokens", json={}).status_code == 404
    assert "tokens.js" in ann.get("/chat").text
    del ann.headers["x-csrf-token"]
    assert ann.post(f"/api/turns/{turns['policy']}/tokens", json={}).status_code == 403


def test_the_answers_of_a_battle_open_only_once_it_is_judged(store, sign_in):
    ann, bob = sign_in("Ann"), sign_in("Bob")
    with store.write() as session:
        ids = [add_response(session, response(f"of {model}", model)) for model in ("policy", "sft")]
        project = chats.own_project(session, "Arena")
        pair = chats.add_pair(session, project, person(session, "Ann"), "battle-1", ids, [1, 0]).id
    address = f"/api/arena/battles/{pair}/tokens"
    refused = ann.post(address, json={})
    assert (refused.status_code, "judge first" in refused.json()["error"]) == (409, True)
    value = {"assignment": pair, "client_id": "battle-0001", "value": {"winner": 0}}
    assert ann.post("/api/labels", json=value).status_code == 200
    left, right = ann.post(address, json={}).json()["responses"]
    assert (left["model"], right["model"]) == ("sft", "policy"), "in the order they were shown in"
    assert bob.post(address, json={}).status_code == 404


def test_an_answer_of_an_evaluation_opens_as_its_model_was_asked(sign_in, root):
    ann, admin = sign_in("Ann"), sign_in("Root", "admin")
    address = "/api/runs/mine/evaluations/evaluation/tokens"
    page = admin.get("/runs/mine/results/evaluation").text
    assert page.count(f'data-tokens="{address}"') == 6
    found = {
        model: admin.post(address, json={"line": 1, "model": model}).json()["responses"][0]
        for model in ("sft", "policy")
    }
    assert found["policy"]["temperature"] == found["sft"]["temperature"] == 0.7
    assert (found["policy"]["reference"], len(found["policy"]["kl"])) == ("sft", len(found["policy"]["tokens"]))
    assert "kl" not in found["sft"], "it was asked another way than the reference reads"
    assert all(len(one["end_scores"]) == len(one["tokens"]) for one in found.values())
    text = found["sft"]["text"]
    finished = found["sft"]["tokens"][-1] == "<|endoftext|>"
    for raw in (True, False):  # sft got the plain text, as --raw says
        same = wukong.load_inspector(root / "sft", raw=raw)("say 1", text, finished=finished, temperature=0.7)
        assert raw == (same.logprobs == pytest.approx(found["sft"]["logprobs"]))
    for body in ({"line": 9, "model": "sft"}, {"line": 0, "model": "other"}):
        assert admin.post(address, json=body).status_code == 404
    assert admin.post("/api/runs/mine/evaluations/policy/tokens", json={"line": 0, "model": "sft"}).status_code == 404
    assert ann.post(address, json={"line": 0, "model": "sft"}).status_code == 403


def test_opening_answers_is_limited(sign_in, stopped_clock):
    ann = sign_in("Ann")
    codes = [ann.post("/api/turns/1/tokens", json={}).status_code for _ in range(22)]
    assert codes == [404] * 20 + [429] * 2
