"""A language model as a judge, behind a server that speaks OpenAI's protocol."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.openai_server import Reply, openai_server
from wukong.errors import RunError, UsageError
from wukong.feedback.annotators import judge_file, load_judge
from wukong.records import Prompt, as_messages


@pytest.fixture
def server() -> Iterator[Callable[[Reply], tuple[str, list[tuple[str, dict]]]]]:
    with ExitStack() as running:
        yield lambda reply: running.enter_context(openai_server(reply))


def by_length(body: dict) -> str:
    answer = body["messages"][1]["content"].split("<answer>\n")[1].split("\n</answer>")[0]
    return f"Grade: {min(10, 1 + len(answer))}"


PROMPTS = [Prompt(messages=as_messages(text)) for text in ("What is 1 + 1?", "Boil an egg")] * 10
TEXTS = [f"{'x' * (i % 9)}" for i in range(20)]


def test_grades_come_in_the_order_of_the_answers(server, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url, requests = server(by_length)
    found = load_judge(f"openai:tiny@{url}")(PROMPTS, TEXTS)
    assert [opinion.score for opinion in found] == [1 + i % 9 for i in range(20)]
    assert len(requests) == len(set(zip(map(str, PROMPTS), TEXTS, strict=True))) == 18, "the same is asked once"
    assert {body["model"] for _, body in requests} == {"tiny"}
    assert all(body["temperature"] == 0 for _, body in requests)
    assert any("user: Boil an egg" in body["messages"][1]["content"] for _, body in requests)


def test_the_server_may_come_from_the_environment(server, monkeypatch) -> None:
    url, _ = server(lambda body: "7.5")
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert load_judge("openai:tiny")(PROMPTS[:1], ["x"])[0].score == 7.5


@pytest.mark.parametrize("as_file", [False, True])
def test_a_written_rubric_is_what_it_grades_by(server, monkeypatch, tmp_path, as_file) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url, requests = server(lambda body: "7")
    rubric, given = "1 point for salt @ 10 g.", "1 point for salt @ 10 g."
    if as_file:
        given = str(tmp_path / "rubric.md")
        Path(given).write_text(f"{rubric}\n", encoding="utf-8")
    name = f"openai:tiny@{url}#{given}"
    own = Prompt(messages=as_messages("Boil an egg"), columns={"rubric": "1 point for water."})
    assert [one.score for one in load_judge(name)([PROMPTS[0], own], ["x", "y"])] == [7, 7]
    systems = [body["messages"][0]["content"] for _, body in requests]
    assert sorted(text.partition("<rubric>")[2] for text in systems) == [
        f"\n{rubric}\n\n1 point for water.\n</rubric>",
        f"\n{rubric}\n</rubric>",
    ]
    assert judge_file(name) == (given if as_file else None)


def test_a_rubric_that_cannot_be_read_is_refused(server, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for name, words in (("openai:m#absent.md", "absent.md"), ("openai:m#", "the rubric: is empty")):
        with pytest.raises(UsageError, match=words):
            load_judge(name)


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        ("7", 7),
        ("Grade: 7.5", 7.5),
        ("7/10", 7),
        ("10 out of 10", 10),
        ("<think>maybe 3</think>\n8", 8),
        ("9. Yes, 9.", 9),
    ],
)
def test_a_grade_is_found_in_what_people_write_around_it(server, said, grade) -> None:
    url, _ = server(lambda body: said)
    assert load_judge(f"openai:tiny@{url}")(PROMPTS[:1], ["x"])[0].score == grade


@pytest.mark.parametrize(
    "said", ["I cannot say", "", "11", "0", "-5", "1e1", "2,5", "On a scale from 1 to 10, I give 3", "<think>maybe 3"]
)
def test_an_answer_without_a_grade_is_asked_for_again_and_then_stops_the_run(server, said) -> None:
    url, requests = server(lambda body: said)
    with pytest.raises(RunError, match=r"answered '.*', expected a number from 1 to 10") as caught:
        load_judge(f"openai:tiny@{url}")(PROMPTS[:1], ["x"])
    assert "\n" not in str(caught.value)
    assert len(requests) == 3


def test_a_server_that_fails_stops_the_run_with_one_line(server) -> None:
    url, _ = server(lambda body: 404)
    with pytest.raises(RunError, match=r"http:.*: status 404: .*no such model") as caught:
        load_judge(f"openai:tiny@{url}")(PROMPTS[:1], ["x"])
    assert "\n" not in str(caught.value)


def test_a_grader_without_model_key_or_server_is_refused(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UsageError, match="write openai:MODEL"):
        load_judge("openai:")
    with pytest.raises(UsageError, match="set OPENAI_API_KEY"):
        load_judge("openai:tiny")
