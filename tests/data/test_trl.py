"""Our records as TRL's rows; that TRL itself takes them is seen in tests/interop."""

from wukong.data import as_trl
from wukong.records import Comparison, Prompt, Ranking, Vote, as_messages

PROMPT = as_messages("Hi")
ASKED = [{"role": "user", "content": "Hi"}]


def said(text):
    return [{"role": "assistant", "content": text}]


def test_each_kind_of_record_has_its_row():
    pair = Comparison(prompt=PROMPT, chosen="Hello!", rejected="What?", annotator="ann", strength=2, seconds=3)
    assert as_trl([pair]) == [{"prompt": ASKED, "chosen": said("Hello!"), "rejected": said("What?")}]
    votes = [Vote(prompt=PROMPT, response=text, vote=vote) for text, vote in (("Hello!", 1), ("What?", -1))]
    assert as_trl(votes) == [
        {"prompt": ASKED, "completion": said("Hello!"), "label": True},
        {"prompt": ASKED, "completion": said("What?"), "label": False},
    ]
    assert as_trl([Prompt(messages=PROMPT)]) == [{"prompt": ASKED}]


def test_a_ranking_becomes_the_pairs_that_it_decides_and_a_tie_none():
    ranking = Ranking(prompt=PROMPT, responses=["a", "b", "c"], groups=[[2], [0, 1]])
    rows = as_trl([ranking, Comparison(prompt=PROMPT, chosen="x", rejected="y", tie=True)])
    assert [(r["chosen"], r["rejected"]) for r in rows] == [(said("c"), said("a")), (said("c"), said("b"))]
