"""Does a reward model from SmolLM2 predict better than a bag of words what people prefer, on prompts it never saw?

    python benchmarks/real/people.py MODEL DATA --runs runs/people --page docs/results/smollm2.md

`wukong reward` learns from people's judgments: half of the training prompts of HH harmless-base, those of
FineGrained-RLHF, and oasst; adapters beside the upper layers, one epoch, one pair per prompt whose worse answer belongs
to another prompt. The bag of words is a logistic regression on unigrams and bigrams (`wukong.studies.pairs`), fitted to
the same pairs. Prompts are cut to their last turns of at most --prompt-tokens, in tests as in training; pairs with a
longer answer than --answer-tokens are left out of the training only. A fifth of the prompts of HH and FineGrained is
the test, as in the recipe hh-scratch; PandaLM and LLMBar are tests as a whole, and training prompts that occur in any
test are left out. Accuracies count ties half; all intervals are 95 %, of 10,000 resamples of the prompts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.finished_run import run_stage
from shared.table import markdown_table
from smollm2 import part_parser, publish_section

from wukong import load_reward
from wukong.data.comparisons import read_comparisons
from wukong.data.split import group_of, split_by_prompt
from wukong.files import write_json
from wukong.records import Comparison, Message, Preference, prompt_id, write_records
from wukong.studies.pairs import Pair, bag_of_words, pairs_of, right
from wukong.tokenizer import Tokenizer

HH = "hh-rlhf/harmless-base.jsonl.gz"
FINE_GRAINED = "preferences/finegrained-rlhf/dev_feedback.json.gz"
OASST = "preferences/oasst/en_100_tree.jsonl.gz"
PANDALM = "preferences/pandalm/testset-v1.json"
LLMBAR_PARTS = ("natural", "adversarial-neighbor", "adversarial-gptinst", "adversarial-gptout", "adversarial-manual")
LLMBAR = [f"preferences/llmbar/{name}.json" for name in LLMBAR_PARTS]
TEST_FRACTION, DEVELOPMENT_FRACTION = 0.2, 0.05
SETTINGS = {
    "lora_rank": 16, "freeze_layers": 20, "pooling": "weighted", "off_prompt": 1, "epochs": 1.0, "batch_size": 8,
    "lr": 3e-4, "normalise_samples": 64, "precision": "bfloat16", "tensorboard": False,
}  # fmt: skip


@dataclass
class Judged:
    """A pair with its prompt cut, and the prompt it belongs to."""

    pair: Pair
    prompt: str


def shortened(prompt: Sequence[Message], tokenizer: Tokenizer, most: int) -> list[Message]:
    """The prompt without its oldest exchanges, down to `most` tokens or to its last turn."""
    users = [i for i, message in enumerate(prompt) if message.role == "user"]
    for start in [0, *users[1:]]:
        if len(tokenizer.prompt_ids(prompt[start:])) <= most:
            return list(prompt[start:])
    return list(prompt[users[-1] :])


def judged(records: Sequence[Preference], tokenizer: Tokenizer, most: int) -> list[Judged]:
    found = []
    cut: dict[str, list[Message]] = {}
    for record in records:
        if (name := prompt_id(record.prompt)) not in cut:
            cut[name] = shortened(record.prompt, tokenizer, most)
        for pair in pairs_of([record]):
            short = Pair(cut[name], pair.chosen, pair.rejected, None, False, pair.source)
            found.append(Judged(short, group_of(record)))
    return found


def write_pairs(path: Path, pairs: Sequence[Judged]) -> str:
    records = [Comparison(prompt=one.pair.prompt, chosen=one.pair.chosen, rejected=one.pair.rejected) for one in pairs]
    write_records(path, records)
    return str(path)


def interval(values: np.ndarray, prompts: Sequence[str], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean over resampled prompts. values: (N,)."""
    _, member = np.unique(np.asarray(prompts), return_inverse=True)
    sums, counts = np.bincount(member, weights=values), np.bincount(member)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(10_000, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def points(values: np.ndarray, prompts: Sequence[str], sign: str = "") -> str:
    low, high = interval(values, prompts)
    return f"{100 * values.mean():{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def margins(model: Path, pairs: Sequence[Judged], known: Path) -> np.ndarray:
    """The reward model's margins (N,), which are computed once."""
    if not known.exists():
        answers = [(one.pair.prompt, text) for one in pairs for text in (one.pair.chosen, one.pair.rejected)]
        distinct = {(json.dumps([m.model_dump() for m in prompt]), text): (prompt, text) for prompt, text in answers}
        scores = dict(
            zip(distinct, load_reward(model, precision="bfloat16").score(list(distinct.values())), strict=True)
        )
        found = [scores[json.dumps([m.model_dump() for m in prompt]), text] for prompt, text in answers]
        write_json(known, found)
    both = np.array(json.loads(known.read_text()))
    return both[::2] - both[1::2]


def main() -> None:
    parser = part_parser(__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/people"))
    parser.add_argument("--prompt-tokens", type=int, default=96)
    parser.add_argument("--answer-tokens", type=int, default=200)
    parser.add_argument("--hh-part", type=float, default=0.5, help="of HH's training prompts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.load(arguments.model)

    def read(*names: str) -> list[Preference]:
        return read_comparisons([str(arguments.data / name) for name in names])

    # --------------------------------------------------------------------------------------------------- the data
    hh, hh_test = split_by_prompt(read(HH), TEST_FRACTION)
    fine, fine_test = split_by_prompt(read(FINE_GRAINED), TEST_FRACTION)
    hh = split_by_prompt(hh, arguments.hh_part, seed=2)[1]
    tests = {
        "HH harmless-base": hh_test, "FineGrained-RLHF": fine_test, "PandaLM": read(PANDALM), "LLMBar": read(*LLMBAR)
    }  # fmt: skip
    tested = {group_of(record) for records in tests.values() for record in records}
    learnt = [record for record in (*hh, *fine, *read(OASST)) if group_of(record) not in tested]
    sides = [judged(side, tokenizer, arguments.prompt_tokens)
             for side in split_by_prompt(learnt, DEVELOPMENT_FRACTION, seed=1)]  # fmt: skip
    train, development = (
        [one for one in side if all(len(tokenizer.encode(text)) <= arguments.answer_tokens
                                    for text in (one.pair.chosen, one.pair.rejected))]
        for side in sides
    )  # fmt: skip
    # ------------------------------------------------------------------------------------------------ the model
    options = SETTINGS | {
        "model": str(arguments.model), "seed": arguments.seed, "out": str(arguments.runs / f"reward-{arguments.seed}"),
        "data": [write_pairs(arguments.runs / "train.jsonl", train)],
        "eval_data": [write_pairs(arguments.runs / "development.jsonl", development)],
    }  # fmt: skip
    seconds = run_stage("reward", options)
    out = Path(options["out"])
    record = json.loads((out / "provenance.json").read_text())
    words = bag_of_words([(one.pair.chosen, one.pair.rejected) for one in train])
    # --------------------------------------------------------------------------------------------------- the tests
    rows, above = [], 0
    for name, records in tests.items():
        pairs = judged(records, tokenizer, arguments.prompt_tokens)
        prompts = [one.prompt for one in pairs]
        texts = [(one.pair.chosen, one.pair.rejected) for one in pairs]
        ours = right(margins(out, pairs, out / f"scores-{name.split()[0]}.json"))
        bag = right(words(texts))
        longer = right(np.array([len(tokenizer.encode(a)) - len(tokenizer.encode(b)) for a, b in texts]))
        above += interval(ours - bag, prompts)[0] > 0
        cells = [points(of, prompts) for of in (ours, bag, longer)]
        rows.append([name, f"{len(pairs):,} of {len(set(prompts)):,}", *cells, points(ours - bag, prompts, "+")])
    columns = ["test", "pairs, of prompts", "reward model, %", "bag of words, %", "longer answer, %", "difference"]
    results = record["results"]
    low, high = results["valid_accuracy_interval"]
    paragraphs = [
        f"{len(train):,} training pairs of {len({one.prompt for one in train}):,} prompts; seed {arguments.seed}; "
        f"{seconds / 60:.0f} minutes of training. On the {results['valid_pairs']} development pairs: "
        f"{100 * results['valid_accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}].",
        markdown_table(columns, rows),
        "Goal: the interval of the difference lies above 0 on at least two of the four tests: "
        f"{'reached' if above >= 2 else 'not reached'} ({above} of 4).",
    ]
    body = "\n\n".join(paragraphs)
    publish_section("People's preferences", body, arguments)


if __name__ == "__main__":
    main()
