"""Simulated annotators: rankings, ties, errors at the stated rate, and judges that misbehave."""

from pathlib import Path

import pytest

from wukong.errors import DataError, RunError, UsageError
from wukong.records import Comparison, Ranking, Response, as_messages, prompt_id, read_records, write_records
from wukong.stages import label
from wukong.stages.label import LabelOptions, ranked


def length_judge(prompts, texts):
    return [len(text) for text in texts]


def wrong_count(prompts, texts):
    return [1.0]


def not_a_number(prompts, texts):
    return [float("nan")] * len(texts)


def text_for_a_number(prompts, texts):
    return ["good"] * len(texts)


def raises(prompts, texts):
    raise ZeroDivisionError("by zero")


JUDGE = f"{__name__}:length_judge"


def responses(path: Path, n: int, texts: list[str]) -> str:
    records = []
    for i in range(n):
        messages = as_messages(f"question {i}")
        for k, text in enumerate(texts):
            identity = {"id": f"{i}-{k}", "prompt_id": prompt_id(messages)}
            records.append(Response(**identity, messages=messages, text=text, model="m"))
    write_records(path, records)
    return str(path)


def test_scores_become_groups_from_best_to_worst() -> None:
    assert ranked([1.0, 3.0, 3.0, 2.0], 0) == [[1, 2], [3], [0]]
    assert ranked([1.0, 3.0, 2.8, 2.0], 0.5) == [[1, 2], [3], [0]]


def test_an_annotator_without_error_ranks_as_the_judge_does(tmp_path: Path) -> None:
    source = responses(tmp_path / "r.jsonl", 3, ["aaa", "a", "aa", "bb"])
    label.run(LabelOptions(out=tmp_path / "c.jsonl", responses=source, judge=JUDGE))
    assert [r.groups for r in read_records(tmp_path / "c.jsonl", Ranking)] == [[[0], [2, 3], [1]]] * 3


def test_pairs_are_flipped_at_the_error_rate(tmp_path: Path) -> None:
    source = responses(tmp_path / "r.jsonl", 1000, ["a", "aa"])
    label.run(LabelOptions(out=tmp_path / "c.jsonl", responses=source, judge=JUDGE, shape="pairs", error_rate=0.25))
    wrong = sum(c.chosen == "a" for c in read_records(tmp_path / "c.jsonl", Comparison))
    assert 200 <= wrong <= 300  # 250 expected, standard deviation 13.7


def test_neighbours_of_a_ranking_are_swapped_at_the_error_rate(tmp_path: Path) -> None:
    source = responses(tmp_path / "r.jsonl", 1000, ["aaaa", "aaa", "aa", "a"])
    label.run(LabelOptions(out=tmp_path / "c.jsonl", responses=source, judge=JUDGE, error_rate=0.1))
    rankings = read_records(tmp_path / "c.jsonl", Ranking)
    wrong = sum(b > w for r in rankings for b, w in r.pairs())
    # three chances a ranking of one wrong pair of six each: 0.3 wrong pairs a ranking
    assert 250 <= wrong <= 350


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("wrong_count", "returned 1 numbers for"),
        ("not_a_number", "returned nan"),
        ("text_for_a_number", "returned 'good'"),
        ("raises", "raised ZeroDivisionError: by zero"),
    ],
)
def test_a_judge_that_misbehaves_stops_the_stage_with_one_line(tmp_path: Path, judge: str, words: str) -> None:
    source = responses(tmp_path / "r.jsonl", 2, ["a", "aa"])
    with pytest.raises(RunError, match=words):
        label.run(LabelOptions(out=tmp_path / "c.jsonl", responses=source, judge=f"{__name__}:{judge}"))
    assert not (tmp_path / "c.jsonl").exists()


@pytest.mark.parametrize("judge", ["nobody", "no.such.module:f", f"{__name__}:absent"])
def test_an_unknown_judge_is_refused(tmp_path: Path, judge: str) -> None:
    source = responses(tmp_path / "r.jsonl", 1, ["a", "aa"])
    with pytest.raises(UsageError):
        label.run(LabelOptions(out=tmp_path / "c.jsonl", responses=source, judge=judge))


def test_the_lexicon_prefers_the_kinder_review(tmp_path: Path) -> None:
    source = responses(tmp_path / "r.jsonl", 1, ["a dull and awful film", "a wonderful, happy film"])
    label.run(LabelOptions(out=tmp_path / "c.jsonl", responses=source, judge="lexicon"))
    assert read_records(tmp_path / "c.jsonl", Ranking)[0].groups == [[1], [0]]


def test_one_answer_a_prompt_cannot_be_compared(tmp_path: Path) -> None:
    source = responses(tmp_path / "r.jsonl", 3, ["same", "same"])
    with pytest.raises(UsageError, match="no prompt has two different answers"):
        label.run(LabelOptions(out=tmp_path / "c.jsonl", responses=source, judge=JUDGE))


@pytest.mark.parametrize("line", [1, 4])
def test_a_bad_response_is_refused_or_left_out_and_listed(tmp_path: Path, line: int, capsys) -> None:
    source = Path(responses(tmp_path / "r.jsonl", 3, ["a", "aa"]))
    label.run(LabelOptions(out=tmp_path / "expected.jsonl", responses=str(source), judge=JUDGE))
    lines = source.read_text().splitlines(keepends=True)
    lines.insert(line - 1, '{"id": "x", "text": "aaa"}\n')
    source.write_text("".join(lines))
    options = LabelOptions(out=tmp_path / "c.jsonl", responses=str(source), judge=JUDGE)
    problem = f"{source}:{line}: field 'prompt_id': Field required"
    with pytest.raises(DataError) as caught:
        label.run(options)
    assert str(caught.value) == problem
    label.run(options.model_copy(update={"skip_bad": 1}))
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "expected.jsonl").read_bytes()
    assert f"left out: {problem}\n" in capsys.readouterr().err


def test_a_file_that_wukong_did_not_make_is_not_overwritten(tmp_path: Path) -> None:
    source = responses(tmp_path / "r.jsonl", 1, ["a", "aa"])
    precious = tmp_path / "c.jsonl"
    precious.write_text("a week of somebody's work\n")
    options = LabelOptions(out=precious, responses=source, judge=JUDGE)
    with pytest.raises(UsageError, match="not made by wukong"):
        label.run(options)
    assert precious.read_text() == "a week of somebody's work\n"
    precious.unlink()
    label.run(options)
    Path(f"{precious}.provenance.json").rename(tmp_path / "kept")  # as if killed just before it was written
    (tmp_path / f".{precious.name}.options.json").write_text((tmp_path / "kept").read_text())
    label.run(options)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"r.jsonl", "c.jsonl", "c.jsonl.provenance.json", "kept"}
