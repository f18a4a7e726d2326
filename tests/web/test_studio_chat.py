"""The chat and the arena over HTTP, without a browser: what is streamed, kept, exported, and refused."""

import json
import threading
import time

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

import wukong
from tests.web.talkative import CONTEXT, save_models
from wukong.data.comparisons import read_comparisons
from wukong.errors import RunError, UsageError
from wukong.feedback.store import chats
from wukong.feedback.store.database import Store
from wukong.feedback.store.people import add_annotator
from wukong.feedback.store.tables import Assignment, ChatTurn, Label, ResponseRow, Task, VoteRow
from wukong.records import Comparison, Message, Response, Vote, prompt_id
from wukong.web.app import create_app
from wukong.web.routes.arena import rated
from wukong.web.state import Settings

XSS = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`"
TALK = "a" * 32
SHORT = {"model": "sft", "max_new_tokens": 12, "seed": 7}  # drawn without a seed, a test would fail now and then


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    save_models(run, "policy", "sft")
    return run


@pytest.fixture
def settings(run_dir):
    return Settings(run_dir=run_dir)


@pytest.fixture
def app(store, settings):
    made = create_app(store, settings)
    yield made
    made.state.studio.models.close()


@pytest.fixture
def browser(app):
    return lambda: TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)


def events(answer) -> list[dict]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(part.removeprefix("data: ")) for part in answer.text.strip().split("\n\n")]


def say(client, content=None, parent=None, talk=TALK, **more):
    """(the turn asked, the text streamed, the last event)"""
    body = {**SHORT, "client_id": f"c{next(NUMBERS):08}", "content": content, "parent": parent, **more}
    first, *pieces, last = events(client.post(f"/api/chats/{talk}/answers", json=body))
    assert "error" not in last, last
    return first["asked"], "".join(piece["text"] for piece in pieces), last


NUMBERS = iter(range(10**6))


def rows(store, table):
    with store.read() as session:
        return session.scalars(sa.select(table).order_by(sa.text("id"))).all()


# ---------------------------------------------------------------------------------------------------------------- chat


def test_an_answer_is_the_models_own_and_can_be_had_again(store, sign_in, run_dir):
    ann = sign_in()
    _, text, last = say(ann, "How long do eggs take?", seed=5, temperature=0.8, top_k=40)
    policy = wukong.load_policy(run_dir / "sft", device="cpu")
    (same,) = policy.generate(["How long do eggs take?"], max_new_tokens=12, temperature=0.8, top_k=40, seed=5)
    assert text == same.text.replace("\x00", "\ufffd") != ""  # no database keeps a NUL
    assert last["finish_reason"] == same.finish_reason
    question, answer = ann.get(f"/api/chats/{TALK}").json()["turns"]
    assert (question["content"], answer["content"], answer["parent"]) == (
        "How long do eggs take?",
        text,
        question["id"],
    )
    assert answer["sampling"] == {"temperature": 0.8, "top_p": 1.0, "top_k": 40, "seed": 5}


def test_a_conversation_goes_on_and_is_edited_beside_the_old_one(store, sign_in):
    ann = sign_in()
    _, first, last = say(ann, "Eggs?")
    _, _, later = say(ann, "And rice?", parent=last["turn"])
    edited, _, _ = say(ann, "Rice instead?", parent=last["turn"])
    turns = {turn["id"]: turn for turn in ann.get(f"/api/chats/{TALK}").json()["turns"]}
    assert len(turns) == 6
    assert turns[edited]["parent"] == last["turn"]
    with store.read() as session:
        said = chats.history(session, session.get_one(ChatTurn, later["turn"]))
        response = session.get_one(ResponseRow, session.get_one(ChatTurn, later["turn"]).response_id)
        answered = session.get_one(chats.PromptRow, response.prompt_id).messages
    assert [message.content for message in said][:3] == ["Eggs?", first, "And rice?"]
    assert [message["content"] for message in answered] == ["Eggs?", first, "And rice?"]


def test_drawn_again_and_judged_is_a_comparison_that_trains(store, sign_in, tmp_path):
    root = sign_in("Root", "admin")
    asked, old, before = say(root, "Eggs?", seed=1, temperature=0.7)
    _, new, last = say(root, parent=asked, seed=2, temperature=0.7, against=before["turn"])
    assert old != new
    (task,) = rows(store, Task)
    (assignment,) = rows(store, Assignment)
    assert (assignment.id, task.open, sorted(assignment.shown)) == (last["assignment"], False, [0, 1])
    body = {
        "assignment": last["assignment"],
        "client_id": "judge-judge",
        "value": {"winner": assignment.shown.index(1)},
    }
    assert root.post("/api/labels", json=body).status_code == 200
    exported = root.get(f"/api/projects/{task.project_id}/export").text
    (tmp_path / "chat.jsonl").write_text(exported)
    (record,) = read_comparisons(tmp_path / "chat.jsonl")
    assert isinstance(record, Comparison)
    assert (record.chosen, record.rejected, record.annotator) == (new, old, "Root")
    assert record.prompt == [Message(role="user", content="Eggs?")]


def test_there_is_no_pair_of_equal_answers(store, sign_in):
    ann = sign_in()
    asked, old, before = say(ann, "Eggs?", temperature=0)
    _, new, last = say(ann, parent=asked, temperature=0, against=before["turn"])
    assert (old == new, last["assignment"], rows(store, Task)) == (True, None, [])


def test_a_vote_can_be_changed_and_taken_back_and_the_last_one_counts(store, sign_in, tmp_path):
    root = sign_in("Root", "admin")
    votes = {}
    for question in ("Eggs?", "Rice?", "Tea?"):
        _, text, last = say(root, question, talk=f"{question[0].lower()}" * 32)
        votes[text] = f"/api/turns/{last['turn']}/vote"
    texts, (eggs, rice, tea) = list(votes), votes.values()
    for path, vote, reason in ((eggs, 1, ""), (eggs, -1, "no times"), (rice, 1, ""), (tea, 1, ""), (tea, 0, "")):
        body = {"client_id": f"vote-{next(NUMBERS):08}", "vote": vote, "reason": reason}
        assert root.post(path, json=body).json() == {"vote": vote}
        assert root.post(path, json=body).status_code == 200  # the same again adds nothing
    assert len(rows(store, VoteRow)) == 5
    assert root.post(rice, json={**body, "vote": -1}).status_code == 409  # another vote's client id
    (tmp_path / "votes.jsonl").write_text(root.get("/api/votes/export").text)
    found = read_comparisons(tmp_path / "votes.jsonl")
    assert all(isinstance(record, Vote) for record in found)
    assert [(one.prompt[0].content, one.response, one.vote) for one in found] == [
        ("Eggs?", texts[0], -1), ("Rice?", texts[1], 1)
    ]  # fmt: skip
    assert root.get("/api/votes/export?form=csv").text.count("no times") == 1
    (tmp_path / "trl.jsonl").write_text(root.get("/api/votes/export?form=trl").text)
    assert [one.vote for one in read_comparisons(tmp_path / "trl.jsonl")] == [-1, 1]
    (shown,) = [turn for turn in root.get(f"/api/chats/{'e' * 32}").json()["turns"] if turn["role"] == "assistant"]
    assert (shown["vote"], shown["reason"]) == (-1, "no times")


def test_a_conversation_that_outgrows_the_model_loses_its_oldest_turns_and_says_so(sign_in):
    ann = sign_in()
    body = {**SHORT, "client_id": "long-long-0", "content": "zq" * 45}
    first, *_, last = events(ann.post(f"/api/chats/{TALK}/answers", json=body))
    assert first["shortened"] is False
    body = {**body, "client_id": "long-long-1", "parent": last["turn"]}
    first, *_ = events(ann.post(f"/api/chats/{TALK}/answers", json=body))
    assert first["shortened"] is True
    answer = ann.post(f"/api/chats/{TALK}/answers", json={**body, "content": "zq" * CONTEXT, "parent": None})
    assert (answer.status_code, "tokens, more than" in answer.json()["error"]) == (400, True)


def test_a_model_that_was_trained_anew_is_loaded_anew(sign_in, run_dir, app, tmp_path):
    save_models(tmp_path, "sft")
    app.state.studio.models.run_dir = tmp_path
    ann = sign_in()
    _, before, _ = say(ann, "Eggs?", seed=1)
    served = app.state.studio.models.service.models["sft"]
    say(ann, "Eggs?", seed=1)
    assert app.state.studio.models.service.models["sft"] is served
    save_models(tmp_path, "other", "sft")
    _, after, _ = say(ann, "Eggs?", seed=1)
    assert app.state.studio.models.service.models["sft"] is not served
    assert before != after


def test_an_answer_is_stopped_by_whoever_asked_and_what_was_said_stays(sign_in, app, before_passes):
    ann, eve = sign_in("Ann"), sign_in("Eve")
    before_passes(lambda _: time.sleep(0.05))
    answers = []
    body = {"client_id": "to-be-stopped", "max_new_tokens": 60}
    thread = threading.Thread(target=lambda: answers.append(say(ann, "Eggs?", **body)))
    thread.start()
    deadline = time.monotonic() + 60
    while not any(one.texts[0] for one in app.state.studio.streams._now.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert eve.post("/api/answers/to-be-stopped/stop").status_code == 404
    assert ann.post("/api/answers/to-be-stopped/stop").status_code == 204
    thread.join(60)
    ((_, text, last),) = answers
    assert last["finish_reason"] == "stopped"
    (_, kept) = ann.get(f"/api/chats/{TALK}").json()["turns"]
    assert (kept["content"], kept["finish_reason"]) == (text, "length")
    assert ann.post("/api/answers/to-be-stopped/stop").status_code == 404  # it is over


@pytest.mark.parametrize("trouble", [UsageError("there is no pair today"), RunError("the disk is full")])
def test_an_answer_is_kept_although_its_pair_cannot_be_made(store, sign_in, monkeypatch, trouble):
    def refuse(*_):
        raise trouble

    ann = sign_in()
    asked, _, before = say(ann, "Eggs?", seed=1)
    monkeypatch.setattr(chats, "drawn_again", refuse)
    body = {**SHORT, "client_id": "again-again", "parent": asked, "against": before["turn"], "seed": 2}
    _, *pieces, last = events(ann.post(f"/api/chats/{TALK}/answers", json=body))
    assert last == {"error": str(trouble)}
    kept = [turn for turn in rows(store, ChatTurn) if turn.role == "assistant"]
    assert [turn.content for turn in kept[1:]] == ["".join(piece["text"] for piece in pieces)]
    assert rows(store, Task) == []


def test_a_message_that_is_refused_with_a_conflict_is_not_stored(store, sign_in, app, before_passes):
    """Whether its id is a pair's, is in use, or too much is being written already."""
    ann = sign_in()
    asked, _, before = say(ann, "Eggs?", seed=1)
    say(ann, parent=asked, seed=2, against=before["turn"], client_id="the-pairs-id")
    go_on = threading.Event()
    before_passes(lambda _: go_on.wait(60))
    names = [f"being-written-{number}" for number in range(3)]
    threads = []

    def refused(client_id):
        body = {**SHORT, "client_id": client_id, "content": "Tea?"}
        return ann.post(f"/api/chats/{TALK}/answers", json=body).status_code

    try:
        for count, name in enumerate(names, start=1):
            threads.append(threading.Thread(target=say, args=(ann, "Rice?"), kwargs={"client_id": name}))
            threads[-1].start()
            deadline = time.monotonic() + 60
            while sum(turn.content == "Rice?" for turn in rows(store, ChatTurn)) < count:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if count == 1:
                assert [refused("the-pairs-id"), refused(name)] == [409, 409]
        assert refused("the-fourth-one") == 409
    finally:
        go_on.set()
        for thread in threads:
            thread.join(60)
    assert ann.post(f"/api/chats/{TALK}/answers", json={**SHORT, "client_id": "nothing-said"}).status_code == 409
    said = [turn.content for turn in rows(store, ChatTurn) if turn.role == "user"]
    assert said == ["Eggs?", "Rice?", "Rice?", "Rice?"]


# --------------------------------------------------------------------------------------------------------------- arena


def challenge(client, prompt="Eggs?"):
    return events(client.post("/api/arena/battles", json={"client_id": f"b{next(NUMBERS):08}", "prompt": prompt}))


def test_a_battle_is_blind_until_it_is_judged(store, sign_in):
    ann, eve = sign_in("Ann"), sign_in("Eve")
    assert ann.get("/api/arena/ratings").json() == []
    *pieces, last = challenge(ann)
    texts = ["".join(piece["text"] for piece in pieces if piece["place"] == place) for place in (0, 1)]
    assert not any(name in json.dumps([*pieces, last]) for name in ("sft", "policy"))
    (assignment,) = rows(store, Assignment)
    with store.read() as session:
        task = session.get_one(Task, assignment.task_id)
        models = [one.response.model for one in task.responses]
        assert [task.texts[i] for i in assignment.shown] == texts
        assert models == ["policy", "sft"]  # in one order, whatever was shown
    address = f"/api/arena/battles/{last['assignment']}"
    assert ann.get(address).status_code == 409
    vote = {"assignment": last["assignment"], "client_id": "judge-judge", "value": {"winner": 1, "strength": 2}}
    assert eve.post("/api/labels", json=vote).status_code == 404
    assert ann.post("/api/labels", json=vote).status_code == 200
    assert eve.get(address).status_code == 404
    names = ann.get(address).json()
    assert names == [models[i] for i in assignment.shown]
    best, worst = ann.get("/api/arena/ratings").json()
    assert (best["model"], worst["model"], best["battles"], best["win_rate"]) == (names[1], names[0], 1, 1.0)
    assert best["rating"] > 1000 > worst["rating"]
    assert best["interval"] is None  # one battle tells nothing of the spread


def test_sides_are_drawn_anew_for_each_battle(store, sign_in, app):
    ann = sign_in()
    for _ in range(8):
        challenge(ann)
    assert {tuple(one.shown) for one in rows(store, Assignment)} == {(0, 1), (1, 0)}  # fails once in 128 runs of 8


def test_ratings_count_first_judgments_only(store, sign_in):
    """Whoever takes a judgment back has seen the names by then."""
    ann = sign_in()
    *_, last = challenge(ann)
    for number, winner in enumerate((0, 1)):
        vote = {"assignment": last["assignment"], "client_id": f"judge-{number}-x", "value": {"winner": winner}}
        assert ann.post("/api/labels", json=vote).status_code == 200
        if winner == 0:
            before = ann.get("/api/arena/ratings").json()
            project = rows(store, Task)[0].project_id
            assert ann.post(f"/api/projects/{project}/undo", json={"client_id": "undo-undo"}).status_code == 200
    assert ann.get("/api/arena/ratings").json() == before
    assert len(rows(store, Label)) == 3


def test_ratings_find_the_stronger_model():
    battles = [chats.Battle(("a", "b"), 0)] * 30 + [chats.Battle(("a", "b"), 1)] * 10
    battles += [chats.Battle(("b", "c"), None)] * 12
    rows = rated(battles)
    assert rows[0]["model"] == "a"
    by_name = {row["model"]: row for row in rows}
    assert by_name["b"]["win_rate"] == (10 + 6) / 52
    assert by_name["c"]["battles"] == 12
    assert all(row["interval"][0] < row["rating"] < row["interval"][1] for row in rows if row["model"] != "c")
    assert by_name["a"]["rating"] - by_name["b"]["rating"] == pytest.approx(400 * 0.4624, abs=6)  # log10(30.5 / 10.5)


def test_a_battle_takes_two_models(store, tmp_path, sign_in, app):
    save_models(tmp_path, "sft")
    app.state.studio.models.run_dir = tmp_path
    ann = sign_in()
    assert "two models" in ann.get("/arena").text
    answer = ann.post("/api/arena/battles", json={"client_id": "b1234567", "prompt": "Eggs?"})
    assert (answer.status_code, "two models" in answer.json()["error"]) == (400, True)


# -------------------------------------------------------------------------------------------------------------- access


def test_nobody_reads_or_touches_anothers_chat(store, sign_in):
    ann, eve, root = sign_in("Ann"), sign_in("Eve"), sign_in("Root", "admin")
    asked, text, last = say(ann, "my secret soup")
    vote = {"client_id": "vote-evil", "vote": -1}
    assert eve.get(f"/api/chats/{TALK}").status_code == 404
    assert eve.get("/api/chats?everybody=true").json() == []
    assert eve.post(f"/api/turns/{last['turn']}/vote", json=vote).status_code == 404
    for body in ({"content": "x", "parent": last["turn"]}, {"content": "x"}, {"parent": asked}):
        for talk in (TALK, "e" * 32):
            if talk == TALK or "parent" in body:  # the other one is to be a conversation of Eve's own
                sent = {**SHORT, "client_id": f"evil-{next(NUMBERS):08}", **body}
                assert eve.post(f"/api/chats/{talk}/answers", json=sent).status_code == 404, (talk, body)
    assert eve.get("/api/votes/export").status_code == 403
    assert "soup" not in eve.get("/").text + eve.get("/chat").text + eve.get("/arena").text
    assert (len(rows(store, ChatTurn)), rows(store, VoteRow)) == (2, [])
    say(eve, "x", talk="e" * 32)
    asked_again = {**SHORT, "client_id": "evil-against", "parent": rows(store, ChatTurn)[2].id, "against": last["turn"]}
    refused = eve.post(f"/api/chats/{'e' * 32}/answers", json=asked_again)
    assert (refused.status_code, text in refused.text) == (404, False)
    # An admin reads everything, and goes on with nothing.
    said = root.get(f"/api/chats/{TALK}").json()
    assert (said["mine"], [turn["content"] for turn in said["turns"]]) == (False, ["my secret soup", text])
    assert len(root.get("/api/chats?everybody=true").json()) == 2
    assert root.post(f"/api/turns/{last['turn']}/vote", json=vote).status_code == 404


def test_pairs_of_the_chat_are_handed_to_nobody_else(store, sign_in):
    ann, eve = sign_in("Ann"), sign_in("Eve")
    asked, _, before = say(ann, "my secret soup", seed=1)
    _, _, last = say(ann, parent=asked, seed=2, against=before["turn"])
    (task,) = rows(store, Task)
    address = f"/api/projects/{task.project_id}"
    assert eve.post(f"{address}/next", json={}).json()["tasks"] == []
    vote = {"assignment": last["assignment"], "client_id": "judge-judge", "value": {"winner": 0}}
    assert ann.post("/api/labels", json=vote).status_code == 200
    assert ann.post(f"{address}/undo", json={"client_id": "undo-undo"}).status_code == 200
    assert eve.post(f"{address}/next", json={}).json() == {"tasks": [], "progress": {"done": 0, "left": 0}}
    assert "/label/" not in eve.get("/").text


@pytest.mark.parametrize("name", ["../sft", "/etc", "nothing", "sft/../sft", ""])
def test_only_models_on_offer_can_be_asked(store, sign_in, name):
    body = {**SHORT, "client_id": "c-model-x", "content": "Eggs?", "model": name}
    assert sign_in().post(f"/api/chats/{TALK}/answers", json=body).status_code == 404
    assert rows(store, ChatTurn) == []


@pytest.mark.parametrize(
    "more",
    [{"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}, {"max_new_tokens": 10**6}, {"seed": -1},
     {"content": "x" * 20_001}, {"content": "  "}, {"content": "a\x00b"}, {"evil": 1}, {"client_id": "short"}],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line(store, sign_in, more):
    body = {**SHORT, "client_id": "c-model-x", "content": "Eggs?", **more}
    answer = sign_in().post(f"/api/chats/{TALK}/answers", json=body)
    assert answer.status_code in (400, 422)
    assert list(answer.json()) == ["error"]
    assert rows(store, ChatTurn) == []


def test_what_is_said_in_the_chat_is_never_markup(store, sign_in):
    root = sign_in("Root", "admin")
    asked, _, before = say(root, XSS, seed=1)
    _, _, last = say(root, parent=asked, seed=2, against=before["turn"])
    vote = {"client_id": "vote-evil", "vote": -1, "reason": XSS}
    assert root.post(f"/api/turns/{last['turn']}/vote", json=vote).status_code == 200
    assert root.get(f"/api/chats/{TALK}").headers["content-type"] == "application/json"  # no page to be run in
    with store.write() as session:
        response = Response(id="evil", prompt_id=prompt_id([]), messages=[Message(role="user", content="x")], text=XSS,
                            model=XSS)  # fmt: skip
        ann = session.scalars(sa.select(chats.Annotator)).one()
        turn = chats.answer(session, ann, session.get_one(ChatTurn, asked), response)
    assert turn.content == XSS
    for path in (f"/chat/{TALK}", "/chat", "/arena", f"/tasks/{rows(store, Task)[0].id}", "/"):
        text = root.get(path).text
        assert "<img" not in text.replace('<img src="/static/icon.svg"', ""), path
        assert "alert(1)</script>" not in text, path


def test_asking_is_slower_than_reading(sign_in, stopped_clock):
    """Each answer keeps a model busy, so there are fewer a minute than requests."""
    ann = sign_in()
    found = [ann.post(f"/api/chats/{TALK}/answers", json={}).status_code for _ in range(30)]
    assert found.count(422) <= 25
    assert 429 in found


def test_own_projects_take_another_name_when_theirs_is_taken(store):
    with store.write() as session:
        chats.create_project(session, "Arena", "ranking")
        first = chats.own_project(session, "Arena")
        assert (first.name, first.kind, first.overlap) == ("Arena 2", "pairwise", 0)
        assert chats.own_project(session, "Arena").id == first.id
        assert chats.own_project(session, "Chat").name == "Chat"


def test_conversations_and_votes_live_in_either_database(database_url):
    store = Store(database_url)
    with store.write() as session:
        ann, bob = (add_annotator(session, name) for name in ("Ann", "Bob"))
        asked = chats.ask(session, ann, TALK, None, "Grüße 你好")
        prompt = chats.history(session, asked)
        made = [
            chats.answer(
                session, ann, asked,
                Response(id=str(n), prompt_id=prompt_id(prompt), messages=prompt, text=f"answer {n}", model=f"m{n}"),
            )
            for n in range(2)
        ]  # fmt: skip
        pair = chats.drawn_again(session, ann, made[1], made[0].id, 0, "pair-1")
        assert pair is not None
        assert pair.shown == [1, 0]
        chats.vote(session, ann, made[0].id, "vote-one", 1, "so")
        chats.vote(session, ann, made[0].id, "vote-two", -1)
        with pytest.raises(UsageError):
            chats.turns(session, bob, TALK)
        with pytest.raises(UsageError):
            chats.ask(session, bob, TALK, None, "x")
    with store.read() as session:
        assert [turn.vote for turn in chats.turns(session, ann, TALK)] == [0, -1, 0]
        assert [one.vote for one in chats.votes(session)] == [-1]
        assert [one.title for one in chats.conversations(session, ann)] == ["Grüße 你好"]
        assert chats.conversations(session, bob) == []
    store.close()
