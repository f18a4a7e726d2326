"""Your own functions as rewards: which columns they are called with, and what is said where one is missing."""

import pytest

from wukong.errors import RunError, UsageError
from wukong.feedback.annotators import load_judge, prompt_needs
from wukong.records import Prompt, as_messages

HERE = __name__
PROMPTS = [
    Prompt(messages=as_messages("1 + 1?"), answer="2", columns={"level": 3, "completions": "x"}),
    Prompt(messages=as_messages("Hi"), columns={"kind": "talk"}),
]
TEXTS = ["2", "Hello!"]


def scores(name: str) -> list[float]:
    return [opinion.score for opinion in load_judge(f"{HERE}:{name}")(PROMPTS, TEXTS)]


def plain(prompts, texts):
    return [len(prompt[-1].content) + 10 * len(text) for prompt, text in zip(prompts, texts, strict=True)]


def checks(prompts, responses, *, answer):
    return [float(text == right) for text, right in zip(responses, answer, strict=True)]


def with_default(prompts, responses, answer, level=None, nowhere="unset"):
    assert nowhere == "unset"
    return [0 if one is None else one for one in level]


def everything(prompts, responses, *, answer, **columns):
    assert columns == {"level": [3, None], "kind": [None, "talk"]}
    assert [prompt[0].content for prompt in prompts] == ["1 + 1?", "Hi"]
    return [0 if right is None else 1 for right in answer]


def as_in_trl(completions, answer, **kwargs):
    assert kwargs.keys() == {"level", "kind"}
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def turned_round(*, responses, prompts):
    return plain(prompts, responses)


def needy(prompts, responses, *, difficulty, level):
    return [0.0] * len(responses)


def only_texts(texts):
    return [1.0] * len(texts)


class Levels:
    def __call__(self, prompts, responses, *, level):
        return [0 if one is None else one for one in level]


instance = Levels()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", [16.0, 62.0]),
        ("checks", [1.0, 0.0]),
        ("with_default", [3.0, 0.0]),
        ("everything", [1.0, 0.0]),
        ("as_in_trl", [1.0, 0.0]),
        ("turned_round", [16.0, 62.0]),
        ("instance", [3.0, 0.0]),
    ],
)
def test_a_function_gets_the_columns_that_it_names(name, expected):
    assert scores(name) == expected


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("plain", set()),
        ("checks", {"answer"}),
        ("with_default", {"answer"}),
        ("everything", {"answer"}),
        ("as_in_trl", {"answer"}),
        ("needy", {"difficulty", "level"}),
    ],
)
def test_a_function_needs_the_columns_that_have_no_default(name, columns):
    assert prompt_needs(f"{HERE}:{name}").columns == columns


def test_a_function_of_one_parameter_is_refused_before_it_is_called():
    with pytest.raises(UsageError, match=r"only_texts: write it as a function of prompts and responses"):
        load_judge(f"{HERE}:only_texts")


def test_a_failing_function_is_one_line():
    with pytest.raises(RunError, match="with_default raised AssertionError"):
        load_judge(f"{HERE}:with_default")([Prompt(messages=as_messages("x"), columns={"nowhere": 1})], ["x"])


def test_the_names_of_verifiers_come_before_modules():
    """`regex:` and `json:` are no modules of that name."""
    assert prompt_needs("regex:^a").check is not None
    assert load_judge("regex:b+")(PROMPTS, ["abb", "a"])[0].score == 1
    with pytest.raises(UsageError, match=r"regex:\(: field 'regex': '\(' is not a regular expression"):
        load_judge("regex:(")


def test_a_schema_for_all_prompts_is_a_file(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text('{"type": "integer"}')
    judge = load_judge(f"json:{path}")
    assert [one.score for one in judge(PROMPTS, ["3", '"3"'])] == [1, 0]
    with pytest.raises(UsageError, match=r"absent\.json"):
        load_judge(f"json:{tmp_path}/absent.json")
    path.write_text('{"type": 3}')
    with pytest.raises(UsageError, match="is no JSON Schema"):
        load_judge(f"json:{path}")
