"""A language model as a judge of pairs: its verdicts, what it is asked, and that no reply is paid for twice."""

import pytest

from tests.openai_server import openai_server
from wukong.errors import RunError
from wukong.feedback.pairwise_judge import PairwiseJudge, agreed, question, verdict_of
from wukong.records import as_messages


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A is longer.\n[[A]]", 1.0),
        ("[[B]]", 0.0),
        ("[[tie]]", 0.5),
        ("[[C]]", 0.5),  # MT-Bench's name of a tie
        ("At first [[A]], but no: [[ b ]]", 0.0),
        ("I like A", None),
        ("", None),
    ],
)
def test_the_last_verdict_counts(reply, verdict):
    assert verdict_of(reply) == verdict


@pytest.mark.parametrize(
    ("forward", "backward", "verdict"),
    [
        (1.0, 0.0, 1.0),  # a preferred in both orders
        (0.0, 1.0, 0.0),
        (1.0, 1.0, 0.5),  # whatever stands first
        (0.0, 0.0, 0.5),
        (0.5, 0.0, 0.5),
        (1.0, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        (None, 1.0, None),
    ],
)
def test_only_a_preference_in_both_orders_is_one(forward, backward, verdict):
    assert agreed(forward, backward) == verdict


@pytest.fixture
def server():
    """An OpenAI-compatible server over real HTTP that prefers the answer with more exclamation marks."""

    def more_marks(request: dict) -> str | int:
        text = request["messages"][-1]["content"]
        first, second = text.partition("[answer A]")[2].split("[answer B]")
        a, b = first.count("!"), second.count("!")
        verdict = "A" if a > b else "B" if b > a else "tie"
        return f"I count.\n[[{verdict}]]" if request["model"] == "m" else 404

    with openai_server(more_marks) as running:
        yield running


def test_replies_come_in_order_and_are_remembered(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)  # a server of one's own needs none
    url, asked = server
    conversation = as_messages("greet me")
    questions = [question(conversation, "hi!" if i % 2 else "hi", "hello!!" if i % 3 else "hello") for i in range(6)]
    expected = [[0.5, 0.0, 0.0, 1.0, 0.0, 0.0][i] for i in range(6)]
    done = []
    judge = PairwiseJudge(url, "m", tmp_path / "verdicts.jsonl")
    assert [verdict_of(reply) for reply in judge.ask(questions, done.append)] == expected
    assert sum(done) == 6
    path, request = asked[0]
    assert (path, request["temperature"]) == ("/v1/chat/completions", 0)
    assert "greet me" in request["messages"][1]["content"]
    # a kill cut the last line: only that question is asked again
    lines = (tmp_path / "verdicts.jsonl").read_text().splitlines()
    assert len(lines) == len(asked) == len(set(questions)) == 4
    (tmp_path / "verdicts.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    before = len(asked)
    again = PairwiseJudge(url, "m", tmp_path / "verdicts.jsonl")
    assert [verdict_of(reply) for reply in again.ask(questions, done.append)] == expected
    assert len(asked) - before == 1


def test_a_rubric_is_part_of_the_question_and_of_its_key(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url, asked = server
    questions = [question(as_messages("greet me"), "hi", "hello")]
    for rubric in ("", "Short is good.", "Short is good."):
        PairwiseJudge(url, "m", tmp_path / "verdicts.jsonl", rubric).ask(questions, lambda n: None)
    assert len(asked) == 2, "what was judged by another rubric is judged again"
    assert ["Short is good." in request["messages"][0]["content"] for _, request in asked] == [False, True]


def test_a_server_that_refuses_is_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    judge = PairwiseJudge(server[0], "other", tmp_path / "verdicts.jsonl")
    with pytest.raises(RunError, match="status 404"):
        judge.ask([question(as_messages("q"), "a", "b")], lambda n: None)
    with pytest.raises(RunError, match="is the server running there"):
        PairwiseJudge("http://127.0.0.1:9/v1", "m", tmp_path / "v.jsonl").ask(["q"], lambda n: None)
