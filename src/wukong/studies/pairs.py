"""Statistics of preference pairs: accuracy by slice, agreement, simple judges.

All functions work on lists of `Pair` and on a reward model's margins (score of the chosen minus score of the rejected
answer); a positive margin is a correct choice.

Shape legend: N pairs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from wukong.errors import DataError, Text
from wukong.language import counted
from wukong.records import Comparison, Messages, Preference, Vote, prompt_id
from wukong.stats import rate_interval


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, one of which was preferred. `strength` is the annotator's, or for a ranking the
    difference in rank."""

    prompt: Messages
    chosen: str
    rejected: str
    strength: float | None
    ranked: bool
    source: str

    @property
    def depth(self) -> int:
        """The number of user turns."""
        return sum(m.role == "user" for m in self.prompt)


def pairs_of(records: Sequence[Preference]) -> list[Pair]:
    """Every comparison that is not a tie, and every pair of different ranks in a ranking. Raises DataError for
    votes."""
    pairs = []
    for record in records:
        if isinstance(record, Vote):
            raise DataError("single votes compare nothing; a report needs pairs", hint="use pairs or rankings")
        if isinstance(record, Comparison):
            if not record.tie:
                one = Pair(record.prompt, record.chosen, record.rejected, record.strength, False, record.source)
                pairs.append(one)
            continue
        place = {answer: number for number, group in enumerate(record.groups) for answer in group}
        for better, worse in record.pairs():
            chosen, rejected = record.responses[better], record.responses[worse]
            if chosen != rejected:
                apart = float(place[worse] - place[better])
                pairs.append(Pair(record.prompt, chosen, rejected, apart, True, record.source))
    return pairs


# --------------------------------------------------------------------------------------------------------- accuracy


def proportion(values: np.ndarray, prompts: Sequence[str]) -> dict[str, Any]:
    """A mean of values in [0, 1] with its 95 % interval over prompts (`wukong.stats`).

    values: (N,); prompts: the prompt id of each.
    """
    _, member = np.unique(np.asarray(prompts), return_inverse=True)
    counts = np.bincount(member)
    return {
        "value": float(values.mean()),
        "interval": rate_interval(np.bincount(member, weights=values), counts),
        "pairs": len(values),
        "prompts": len(counts),
    }


def right(margins: np.ndarray) -> np.ndarray:
    """1 if the preferred answer scores higher, 1/2 for equal scores, else 0."""
    result: np.ndarray = (np.sign(margins) + 1) / 2
    return result


LENGTH_BINS = (
    (-math.inf, Text("chosen less than 60 % of the other's length"), -0.5),
    (-0.5, Text("chosen shorter"), -0.1),
    (-0.1, Text("about as long (within 10 %)"), 0.1),
    (0.1, Text("chosen longer"), 0.5),
    (0.5, Text("chosen more than 5/3 of the other's length"), math.inf),
)
"""By (chosen - rejected) / mean of both lengths; 0.5 means 5 to 3."""


def slices(
    pairs: Sequence[Pair], margins: np.ndarray, lengths: np.ndarray, prompts: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Accuracy within each source, margin, strength, length difference and depth; empty groups are left out.

    lengths: (N, 2) tokens of the chosen and the rejected answer.
    """
    relative = (lengths[:, 0] - lengths[:, 1]) / np.maximum(lengths.mean(1), 1)
    of_length = [next(name for low, name, high in LENGTH_BINS if low <= d < high) for d in relative]
    names: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "source": ([p.source or NO_SOURCE for p in pairs], sorted({p.source or NO_SOURCE for p in pairs})),
        "margin": _fifths(np.abs(margins), "margin {low:.3g} to {high:.3g}"),
        "strength": _strengths(pairs),
        "length": (of_length, [name for _, name, _ in LENGTH_BINS]),
        "depth": (
            [_turns(p.depth) for p in pairs],
            [_turns(d) for d in sorted({min(p.depth, DEEP) for p in pairs})],
        ),
    }
    outcome = right(margins)
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, (of_pair, order) in names.items():
        found[kind] = []
        for name in order:
            index = [i for i, own in enumerate(of_pair) if own == name]
            if index:
                entry = proportion(outcome[index], [prompts[i] for i in index])
                found[kind].append({"name": name, **entry})
    return found


DEEP = 4
NO_SOURCE = Text("(none)")


def _turns(depth: int) -> Text:
    return Text("{n} turns or more", n=DEEP) if depth >= DEEP else counted(depth, "{n:,} turn", "{n:,} turns")


def _fifths(values: np.ndarray, template: str) -> tuple[list[Text], list[Text]]:
    """Each value's quintile, named by its limits; fewer groups if values are few or equal."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 6)))
    if len(edges) < 3:
        name = Text(template, low=float(values.min()), high=float(values.max()))
        return [name] * len(values), [name]
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    order = [Text(template, low=float(low), high=float(high)) for low, high in pairwise(edges)]
    return [order[i] for i in place], order


def _strengths(pairs: Sequence[Pair]) -> tuple[list[Text], list[Text]]:
    """Strengths as given if there are few, else in quintiles; ranked pairs by difference in rank."""
    graded = [i for i, p in enumerate(pairs) if p.strength is not None and not p.ranked]
    values = np.array([pairs[i].strength for i in graded], dtype=float)
    if len(set(values)) > 8:
        named, order = _fifths(values, "strength {low:.3g} to {high:.3g}")
    else:
        named = [Text("strength {value:g}", value=float(value)) for value in values]
        order = sorted(set(named), key=lambda name: name.values["value"])
    of_pair = dict(zip(graded, named, strict=True))
    apart = {i: int(p.strength or 0) for i, p in enumerate(pairs) if p.ranked}
    of_pair |= {i: _places(n) for i, n in apart.items()}
    return (
        [of_pair.get(i, NOT_GIVEN) for i in range(len(pairs))],
        [*order, *(_places(n) for n in sorted(set(apart.values()))), NOT_GIVEN],
    )


NOT_GIVEN = Text("not given")


def _places(n: int) -> Text:
    return counted(n, "{n:,} place apart", "{n:,} places apart")


def calibration_error(bins: Sequence[dict[str, float]]) -> float | None:
    """Expected calibration error: the mean of |predicted - observed| over bins, weighted by their pairs (Guo et al.
    2017). None without bins."""
    n = sum(b["n"] for b in bins)
    return sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in bins) / n if n else None


# -------------------------------------------------------------------------------------------------------- agreement


def agreement(records: Sequence[Preference]) -> dict[str, Any] | None:
    """How often two annotators agree on a pair, and the accuracy this allows; None if no pair was judged by two
    annotators with different names (judgments without a name may be duplicates).

    Let p be the chance that an annotator prefers the first answer of a pair. Two agree with probability
    p^2 + (1-p)^2 = (1 + (2p-1)^2)/2, so the measured agreement A gives E[(2p-1)^2] = 2A - 1. No judge can predict a
    single judgment better than E[max(p, 1-p)] = (1 + E|2p-1|)/2, and since E[x^2] <= E|x| <= sqrt(E[x^2]) for |x| <= 1
    this lies between A and (1 + sqrt(2A - 1))/2; it is the latter if all pairs are equally hard.

    Ties are excluded, as they are from the accuracy, and counted.
    """
    judged: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    for record in records:
        if isinstance(record, Vote) or not record.annotator:
            continue
        prompt = prompt_id(record.prompt)
        if isinstance(record, Comparison):
            found = [(record.chosen, record.rejected, 0 if record.tie else 1)]
        else:
            found = [(record.responses[b], record.responses[w], 1) for b, w in record.pairs()]
        for better, worse, verdict in found:
            first, second = sorted((better, worse))
            judged[prompt, first, second][record.annotator] = verdict if better == first else -verdict
    repeated = {key: list(of_pair.values()) for key, of_pair in judged.items() if len(of_pair) > 1}
    same: list[float] = []
    prompts: list[str] = []
    ties = 0
    for (prompt, _, _), verdicts in repeated.items():
        ties += verdicts.count(0)
        clear = [v for v in verdicts if v]
        outcomes = [float(a == b) for a, b in combinations(clear, 2)]
        same += outcomes
        prompts += [prompt] * len(outcomes)
    if not same:
        return None
    rate = proportion(np.array(same), prompts)
    return {
        "pairs": len(repeated),
        "judgments": sum(len(v) for v in repeated.values()),
        "ties": ties,
        "agreement": rate["value"],
        "agreement_interval": rate["interval"],
        "ceiling": [rate["value"], _ceiling(rate["value"])],
        "ceiling_interval": [rate["interval"][0], _ceiling(rate["interval"][1])],
    }


def _ceiling(agreement: float) -> float:
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


# ----------------------------------------------------------------------------------------------------- simple judges

Choice = Callable[[Sequence[tuple[str, str]]], np.ndarray]
"""(first, second) texts -> margins (N,), positive if the first is preferred."""


def bag_of_words(better_worse: Sequence[tuple[str, str]]) -> Choice:
    """A bag-of-words judge: a logistic regression on the difference of the answers' binary unigram and bigram counts
    (scikit-learn), fitted to the given pairs."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(ngram_range=(1, 2), min_df=2, binary=True, token_pattern=r"(?u)\b\w+\b")
    try:
        words.fit([text for pair in better_worse for text in pair])
    except ValueError:  # no word occurs in two answers
        return lambda pairs: np.zeros(len(pairs))

    def difference(pairs: Sequence[tuple[str, str]]) -> Any:
        return words.transform([a for a, _ in pairs]) - words.transform([b for _, b in pairs])

    fitted = difference(better_worse)
    model = LogisticRegression(C=1.0, max_iter=2000, fit_intercept=False)
    n = len(better_worse)
    model.fit(vstack([fitted, -fitted]), [1] * n + [0] * n)
    return lambda pairs: np.asarray(difference(pairs) @ model.coef_[0])


def simple_judges(
    pairs: Sequence[Pair],
    margins: np.ndarray,
    lengths: np.ndarray,
    prompts: Sequence[str],
    train: tuple[Sequence[Pair], np.ndarray] | None,
) -> dict[str, Any]:
    """Length and a bag of words as judges, and as explanations of the model's choices.

    Args:
        lengths: (N, 2) tokens of the chosen and the rejected answer.
        train: the reward model's training pairs and its margins for them; None skips the bag of words.

    Returns:
        For each judge its `accuracy` on the labels, and `explains`, how often it agrees with the model. For length also
        `r2`, the fraction of the variance of the model's margins explained by a linear function of the length
        difference (both are antisymmetric, so without an intercept).
    """
    difference = (lengths[:, 0] - lengths[:, 1]).astype(float)
    power = float((difference**2).sum() * (margins**2).sum())
    unequal = difference != 0
    index = [i for i, one in enumerate(unequal) if one]
    same = right(np.sign(difference) * margins)
    found: dict[str, Any] = {
        "length": {
            "accuracy": proportion(right(difference), prompts),
            "explains": proportion(same[index], [prompts[i] for i in index]) if index else None,
            "r2": float((difference * margins).sum()) ** 2 / power if power else 0.0,
        },
        "bag_of_words": None,
    }
    if train is not None and train[0]:
        texts = [(p.chosen, p.rejected) for p in pairs]
        train_texts = [(p.chosen, p.rejected) for p in train[0]]
        labels = bag_of_words(train_texts)(texts)
        chosen = [(a, b) if m > 0 else (b, a) for (a, b), m in zip(train_texts, train[1], strict=True)]
        choices = bag_of_words(chosen)(texts)
        found["bag_of_words"] = {
            "accuracy": proportion(right(labels), prompts),
            "explains": proportion(right(choices * np.sign(margins)), prompts),
        }
    return found
