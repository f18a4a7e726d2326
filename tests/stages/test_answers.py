"""Answers to one prompt are read with one prompt, and judgments of one prompt are one group, whoever gave them."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from wukong.data.answers import answers_ids, pairs_by_prompt, shared_prompt, tokenised_answers
from wukong.data.comparisons import read_comparisons
from wukong.data.summary import ReadSummary
from wukong.feedback.reward_models import reward_judge
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_reward
from wukong.objectives import grouped_mean
from wukong.records import Comparison, Message, Prompt, Ranking, Vote, as_messages
from wukong.stages.direct import dpo, kto
from wukong.stages.reward import RewardOptions, forward_pairs, group_losses, groups_of, off_prompt_groups
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute

CPU = Compute(torch.device("cpu"), torch.float32)
PLAIN = Tokenizer.train([], 257, "plain")  # a byte a token, messages joined as they stand


def dialogue(*turns: str, system: str = "") -> list[Message]:
    """Turns of user and assistant in turn."""
    begin = [Message(role="system", content=system)] if system else []
    roles = ("user", "assistant")
    return begin + [Message(role=roles[i % 2], content=text) for i, text in enumerate(turns)]


# Ten bytes a turn: the whole prompt has 50, without its oldest exchange 30, the last turn alone 10.
LONG = dialogue("0123456789", "abcdefghij", "1123456789", "bbcdefghij", "2123456789")


def options(tmp_path, **changes) -> RewardOptions:
    return RewardOptions(out=tmp_path / "out", model="m", data=["d"], **changes)


def size(prompt: list[Message]) -> int:
    return len(PLAIN.prompt_ids(prompt))


def test_a_prompt_is_cut_once_by_its_longest_answer():
    whole, middle, last = (PLAIN.prompt_ids(LONG[start:]) for start in (0, 2, 4))
    context = len(whole) + 5
    texts = ["yes", "n" * 5]
    read = tokenised_answers(PLAIN, [(LONG, text) for text in texts], context, finished=False)
    assert [prompt for prompt, _ in read] == [whole, whole]
    read = tokenised_answers(PLAIN, [(LONG, text) for text in ["yes", "n" * 6]], context, finished=False)
    assert [prompt for prompt, _ in read] == [middle, middle], "the short answer loses the old turns too"
    assert [len(answer) for _, answer in read] == [3, 6]
    alone = context - len(last)
    read = tokenised_answers(PLAIN, [(LONG, "n" * alone), (LONG, "yes")], context, finished=False)
    assert [prompt for prompt, _ in read] == [last, last]
    ended = tokenised_answers(PLAIN, [(LONG, "n" * 5), (LONG, "yes")], context, finished=True)
    assert [prompt for prompt, _ in ended] == [middle, middle], "the end token needs a place as well"


def test_an_answer_that_fits_nowhere_costs_the_others_nothing():
    context = size(LONG) + 5
    read = answers_ids(PLAIN, [(LONG, "n" * context), (LONG, "yes")], context)
    assert read == [None, PLAIN.prompt_ids(LONG) + PLAIN.encode("yes")]
    assert shared_prompt(PLAIN, LONG, [context], context) is None


def test_a_system_message_stays_when_old_turns_go():
    prompt = dialogue("first", "answer", "last", system="rules")
    context = size(prompt) + 2
    [(ids, _)] = tokenised_answers(PLAIN, [(prompt, "four")], context, finished=False)
    assert ids == PLAIN.prompt_ids([prompt[0], prompt[-1]])


def test_other_prompts_keep_their_own_turns():
    other = dialogue("9" * 10, "abcdefghij", "1123456789", "bbcdefghij", "2123456789")
    context = size(LONG) + 5
    read = tokenised_answers(PLAIN, [(LONG, "n" * 6), (other, "n")], context, finished=False)
    assert read[0][0] != PLAIN.prompt_ids(LONG)
    assert read[1][0] == PLAIN.prompt_ids(other)


def test_every_stage_reads_both_answers_of_a_pair_with_one_prompt(tmp_path):
    """The reward model, DPO and KTO, on comparisons, rankings and votes of every length."""
    draw = np.random.default_rng(0)
    records = []
    for n in range(200):
        turns = ["x" * int(k) for k in draw.integers(1, 25, size=2 * int(draw.integers(0, 4)) + 1)]
        answers = [f"{n} " + "y" * int(k) for k in draw.choice(40, size=3, replace=False)]
        prompt = dialogue(f"{n}?", "ok", *turns)
        records.append(Comparison(prompt=prompt, chosen=answers[0], rejected=answers[1], annotator="a"))
        records.append(Ranking(prompt=prompt, responses=answers, groups=[[1], [0], [2]], annotator="b"))
    context = 64
    found = groups_of(records, PLAIN, context, options(tmp_path), ReadSummary())
    for group in found:
        prompts = {
            tuple(ids[: len(ids) - len(PLAIN.encode(t))]) for ids, t in zip(group.answers, group.texts, strict=True)
        }
        assert len(prompts) == 1
        assert all(len(ids) <= context for ids in group.answers)
    assert len(found) > 100
    for one in dpo.groups_of(records, PLAIN, context, ReadSummary()):
        assert len({tuple(answer.prompt) for answer in one.answers}) == 1
        assert all(len(answer.ids) <= context for answer in one.answers)
    votes = [Vote(prompt=r.prompt, response=t, vote=1) for r in records[1::2] for t in r.responses]
    read = defaultdict(set)
    for voted in kto.votes_of(votes, PLAIN, context, ReadSummary()):
        number = PLAIN.decode(voted.answer.response).split()[0]
        read[number].add(tuple(voted.answer.prompt))
    assert len(read) > 100
    assert all(len(prompts) == 1 for prompts in read.values())


def test_a_reward_model_as_judge_reads_all_answers_to_a_prompt_with_one(tiny_models):
    """Scores equal those of sequences with the common prompt; with room given they do not depend on the others."""
    model, tokenizer = load_reward(tiny_models / "reward")
    prompt = dialogue("0123456789", "abcdefghij", "1123456789", "bbcdefghij", "2123456789")  # 50 of a context of 64
    asked = Prompt(messages=prompt)

    def alone(start: int, text: str) -> float:
        ids = torch.tensor([tokenizer.prompt_ids(prompt[start:]) + tokenizer.encode(text)])
        with torch.no_grad():
            return float(model.eval()(ids, torch.tensor([ids.shape[1]])))

    together = reward_judge(str(tiny_models / "reward"), CPU, 4096)([asked] * 2, ["yes", "n" * 20])
    assert [one.score for one in together] == pytest.approx([alone(2, "yes"), alone(2, "n" * 20)], abs=1e-5)
    judge = reward_judge(str(tiny_models / "reward"), CPU, 4096, room=20)
    assert judge([asked], ["yes"])[0].score == pytest.approx(alone(2, "yes"), abs=1e-5)
    assert judge([asked], ["n" * 15])[0].score == pytest.approx(alone(2, "n" * 15), abs=1e-5)


def test_no_pair_of_hh_is_read_with_two_prompts(shared):
    """A word is a few tokens here, as with GPT-2's vocabulary; the context is one that a fifth of the pairs passes."""
    records = read_comparisons(shared("hh-rlhf/harmless-base.jsonl.gz"))[:1500]
    tokenizer = Tokenizer.train([m.content for r in records[:300] for m in r.prompt], 2000, "alpaca")
    differently = 0
    for group in pairs_by_prompt(records, tokenizer, 256, ReadSummary(), finished=False):
        assert len({tuple(prompt) for prompt, _ in group.answers}) == 1
        whole = tokenizer.prompt_ids(group.prompt)
        one_by_one = {len(whole) + len(answer) > 256 for _, answer in group.answers}
        differently += len(one_by_one) > 1
    assert differently > 20, "cut each for itself, these would have had different prompts"


# ------------------------------------------------------------------------------------------- judgments of one prompt


def ranking(prompt: str, order: str, annotator: str) -> Ranking:
    """Answers a, b, c from best to worst."""
    return Ranking(
        prompt=as_messages(prompt), responses=["a", "b", "c"], groups=[["abc".index(x)] for x in order],
        annotator=annotator,
    )  # fmt: skip


def test_two_rankings_of_one_prompt_are_one_group_with_the_loss_derived_by_hand(tmp_path):
    """Scores a = 2, b = 1, c = 0; Ann says a > b > c, Bob b > a > c, and another prompt has one pair, 1 apart.

    With l(d) = log(1 + e^-d): Ann's pairs (a, b), (a, c), (b, c) cost l(1), l(2), l(1); Bob's (b, a), (b, c), (a, c)
    cost l(-1), l(1), l(2). The prompt's mean is (3 l(1) + 2 l(2) + l(-1)) / 6, the batch's the mean of both prompts.
    """
    records = [ranking("q", "abc", "ann"), Comparison(prompt=as_messages("p"), chosen="x", rejected="y")]
    records.append(ranking("q ", "bac", "bob"))  # another's copy of the prompt ends in a space
    groups = groups_of(records, PLAIN, 64, options(tmp_path), ReadSummary())
    assert [len(group.pairs) for group in groups] == [6, 1]
    assert groups[0].texts == ["a", "b", "c"]
    scores = {"a": 2.0, "b": 1.0, "c": 0.0, "x": 1.0, "y": 0.0}
    margins = torch.tensor([scores[g.texts[b]] - scores[g.texts[w]] for g in groups for b, w in g.pairs])
    member = torch.tensor([0] * 6 + [1])
    l1, l2, minus = (float(np.log1p(np.exp(-d))) for d in (1, 2, -1))
    expected = ((3 * l1 + 2 * l2 + minus) / 6 + l1) / 2
    assert float(grouped_mean(group_losses(groups, margins, options(tmp_path)), member)) == pytest.approx(expected)
    # Bob's word counts half: his three pairs weigh 1/2 each.
    halved = options(tmp_path, annotators=["ann", "bob=0.5"])
    weighted = groups_of([r for r in records if r.annotator], PLAIN, 64, halved, ReadSummary())
    loss = grouped_mean(group_losses(weighted, margins[:6], halved), member[:6])
    assert float(loss) == pytest.approx((l1 + l2 + l1 + (minus + l1 + l2) / 2) / 6)


def test_each_answer_of_a_prompt_that_several_ranked_passes_through_the_model_once(tmp_path, tiny_models):
    model: ScalarModel = load_reward(tiny_models / "reward")[0]
    groups = groups_of(
        [ranking("q", "abc", "ann"), ranking("q", "cab", "bob"), ranking("q", "abc", "cid")],
        PLAIN, 64, options(tmp_path), ReadSummary(),
    )  # fmt: skip
    assert [len(group.answers) for group in groups] == [3]
    with torch.no_grad():
        margins, member = forward_pairs(model.eval(), groups, CPU)
    assert (len(margins), set(member.tolist())) == (9, {0})


def test_comparisons_and_rankings_of_one_prompt_are_one_group(tmp_path):
    records = [Comparison(prompt=as_messages("q"), chosen="b", rejected="d"), ranking("q", "abc", "ann")]
    [group] = groups_of(records, PLAIN, 64, options(tmp_path), ReadSummary())
    assert sorted(group.texts) == ["a", "b", "c", "d"]
    named = [(group.texts[b], group.texts[w]) for b, w in group.pairs]
    assert named == [("b", "d"), ("a", "b"), ("a", "c"), ("b", "c")]
    [pairs] = dpo.groups_of(records, PLAIN, 64, ReadSummary())
    assert len(pairs.pairs) == 4


@pytest.mark.parametrize("spaces", ["", " ", "\n"])
def test_off_prompt_never_pairs_a_prompt_with_itself(tmp_path, spaces):
    """Three people ranked each of four prompts, and disagree: their favourites are different answers."""
    records = [
        Ranking(prompt=as_messages(f"q{n}" + spaces * (k == 1)), responses=[f"{n}a", f"{n}b", f"{n}c"],
                groups=[[k], [(k + 1) % 3], [(k + 2) % 3]], annotator=f"p{k}")
        for n in range(4)
        for k in range(3)
    ]  # fmt: skip
    groups = groups_of(records, PLAIN, 64, options(tmp_path), ReadSummary())
    assert len(groups) == 4
    for seed in range(20):
        found = off_prompt_groups(groups, PLAIN, 64, count=3, seed=seed)
        assert len(found) == 12
        for group in found:
            own, foreign = group.texts
            assert own[0] == group.prompt[0].content[1]
            assert foreign[0] != own[0], "an answer to another prompt"


def test_the_best_answer_is_what_most_people_say(tmp_path):
    """Two of three put a first. Bob alone has c first: where his word counts three times, c is the best."""
    records = [ranking("q", "abc", "ann"), ranking("q", "cba", "bob"), ranking("q", "acb", "cid")]
    [group] = groups_of(records, PLAIN, 64, options(tmp_path), ReadSummary())
    assert group.texts[group.best] == "a"
    [group] = groups_of(records, PLAIN, 64, options(tmp_path, annotators=["ann", "bob=3", "cid"]), ReadSummary())
    assert group.texts[group.best] == "c"
