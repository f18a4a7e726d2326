"""What a reward model must beat: a bag of words and the length alone, on the very split that `wukong reward` used.

    python benchmarks/simple_judges.py runs/polite/reward_all

Reads the options and data from the reward model's provenance.json. The bag of words is a logistic regression
(scikit-learn) on the difference of the two answers' word counts, uni- and bigrams, of the answer alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.sparse import vstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from wukong.data.comparisons import read_comparisons
from wukong.data.split import halves, split_by_prompt
from wukong.records import Comparison, Preference, Ranking
from wukong.stages.common import bootstrap_interval


def pairs_of(records: list[Preference]) -> list[tuple[str, str]]:
    """(better, worse) of every comparison that is no tie and every pair of a ranking."""
    pairs = []
    for record in records:
        if isinstance(record, Comparison) and not record.tie:
            pairs.append((record.chosen, record.rejected))
        elif isinstance(record, Ranking):
            pairs += [(record.responses[b], record.responses[w]) for b, w in record.pairs()]
    return pairs


def describe(name: str, right: np.ndarray) -> str:
    low, high = bootstrap_interval(right, np.ones(len(right)), seed=0)
    return f"| {name} | {right.mean():.3f} | {low:.3f} to {high:.3f} | {len(right)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reward", type=Path, help="directory of a trained reward model")
    record = json.loads((parser.parse_args().reward / "provenance.json").read_text())
    options, results = record["options"], record["results"]
    records = read_comparisons(options["data"])
    if options["eval_data"]:
        train, test = records, read_comparisons(options["eval_data"])
    else:
        train, test = split_by_prompt(records, options["valid_fraction"], options["seed"])
    if options["half"] != "both":
        train = halves(train, options["seed"])[options["half"] == "second"]
    fit, held_out = pairs_of(train), pairs_of(test)
    words = CountVectorizer(ngram_range=(1, 2), min_df=2, binary=True).fit([text for pair in fit for text in pair])
    difference = words.transform([b for b, _ in fit]) - words.transform([w for _, w in fit])
    model = LogisticRegression(C=1.0, max_iter=2000, fit_intercept=False)
    model.fit(vstack([difference, -difference]), [1] * len(fit) + [0] * len(fit))
    margin = (words.transform([b for b, _ in held_out]) - words.transform([w for _, w in held_out])) @ model.coef_[0]
    lengths = np.array([len(b) - len(w) for b, w in held_out])
    low, high = results["valid_accuracy_interval"]
    print("| judge | accuracy | 95 % interval | pairs |\n| --- | ---: | ---: | ---: |")
    print(f"| reward model | {results['valid_accuracy']:.3f} | {low:.3f} to {high:.3f} | {results['valid_pairs']} |")
    print(describe("bag of words", (np.sign(margin) + 1) / 2))
    print(describe("length (longer is better)", (np.sign(lengths) + 1) / 2))


if __name__ == "__main__":
    main()
