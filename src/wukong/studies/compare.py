"""`wukong compare`: two or more models, or files of their answers -> which is better, in numbers and words.

In:  models or files of answers; unseen prompts; judges: rubric, function, reward model, LLM behind an API, people.
Out: out/comparison.json (win rates, ratings, agreement, conclusions) and out/answers.jsonl (every answer).

    wukong compare sft=runs/mine/sft policy=runs/mine/policy --prompts test.jsonl --judge rubric --out runs/mine/compare

All models answer the same prompts with the same random numbers, sampled as in `wukong evaluate`. docs/tools/compare.md
defines each figure and what the conclusions mean.

Shape legend: P prompts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from wukong import require
from wukong.console import Bar, console, say
from wukong.data.comparisons import COMPARISONS, load_comparisons
from wukong.data.overlap import overlap
from wukong.data.sources import DataOptions
from wukong.errors import RunError, Text, UsageError
from wukong.feedback.annotators import load_judge
from wukong.feedback.grader import written_rubric
from wukong.feedback.pairwise_judge import PairwiseJudge, agreed, question, verdict_of
from wukong.feedback.replies import forget_replies, replies_path
from wukong.files import atomic_open, write_json
from wukong.language import spoken
from wukong.model.hub import load_policy
from wukong.records import Comparison, Prompt, Vote, prompt_id
from wukong.report.formatting import equal_length, interval, percent
from wukong.require import Need
from wukong.sampling import SamplingParameters
from wukong.stages.evaluate import AnswerOptions, answer_all, answer_needs, chosen_prompts, rewards_of
from wukong.stats import in_words
from wukong.studies.answers import ModelAnswer, read_answers, split_name
from wukong.studies.win_rates import Outcomes, compared, ratings, with_people
from wukong.training.compute import Compute, compute_for

JUDGES = ("judge", "reward_model", "endpoint", "human")


class CompareOptions(AnswerOptions):
    """Compare models, or files of their answers: win rates, ratings and conclusions."""

    models: list[str]
    """Two or more models: name=DIRECTORY, or name=FILE with answers (responses.jsonl, answers.jsonl)."""
    prompts: list[str] = []
    """Prompts not used in training; not needed if all models are files of answers."""
    judge: str | None = None
    """rubric (the kitchen's), lexicon (VADER sentiment), a verifier (exact, number, regex[:PATTERN],
    json[:SCHEMA.json], constraints), openai:MODEL[@URL][#RUBRIC], or module:function."""
    reward_model: str | None = None
    """A reward model as judge, preferably one not used in training."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server whose model judges each pair in both orders (key: OPENAI_API_KEY)."""
    endpoint_model: str | None = None
    """The model's name on that server."""
    rubric: str = ""
    """What that model judges by, as text or as a file's name; by default what is helpful, accurate and safe."""
    human: list[str] = []
    """People's comparisons or rankings of these same answers, in any format of docs/reference/data.md."""

    @classmethod
    def needed(cls, given: Mapping[str, Any]) -> list[str]:
        missing = []
        paths = [split_name(model)[1] for model in given.get("models") or [] if "=" in model]
        if not given.get("prompts") and any(not Path(path).is_file() for path in paths):
            missing.append("--prompts")
        if not any(given.get(judge) for judge in JUDGES):
            missing.append(Text("a judge (--judge, --reward-model, --endpoint or --human)"))
        return missing


def _human_options(options: CompareOptions) -> DataOptions:
    """How people's judgments are read; the option `format` applies to the prompts."""
    return DataOptions(
        columns=options.columns, question=options.question, encoding=options.encoding, skip_bad=options.skip_bad
    )


def needs(options: CompareOptions) -> list[Need]:
    models = _models(options)
    _check(options, models)
    human = _human_options(options)
    answers = {path for path in models.values() if Path(path).is_file()}
    return [
        *([require.judge(options.judge, model=False)] if options.judge else []),
        *require.endpoint(options.endpoint, options.endpoint_model),
        *require.judged_prompts(options.prompts, options, [options.judge] if options.judge else []),
        *require.rubric(options.rubric),
        *(require.some_lines(path) if path in answers else require.policy(path) for path in models.values()),
        *answer_needs([], options),
        *([require.reward_model(options.reward_model)] if options.reward_model else []),
        *require.data(options.human, require.reader(COMPARISONS, human)),
        *(require.room(path, options.max_new_tokens) for path in models.values() if path not in answers),
    ]


def _models(options: CompareOptions) -> dict[str, str]:
    return require.distinct_names([split_name(model) for model in options.models], "--models")


def run(options: CompareOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError if a judge fails."""
    work = require.open_stage("compare", options, needs(options))
    if work.done:
        return
    models = _models(options)
    judge = load_judge(options.judge, replies_path(options.out, directory=True)) if options.judge else None
    # --------------------------------------------------------------------------------------------------- answers
    compute = compute_for(options.precision, options.device)
    prompts, answers, sampling = _answers(models, options, compute)
    names, texts = list(answers), {name: [one.text for one in of] for name, of in answers.items()}
    lengths = {name: np.array([len(text) for text in of]) for name, of in texts.items()}
    # ---------------------------------------------------------------------------------------------------- judges
    outcomes: dict[str, Outcomes] = {}
    notes: dict[str, dict[str, Any]] = defaultdict(dict)
    people = _by_people(options, prompts, texts) if options.human else None
    if people is not None:
        outcomes["people"] = people
    if judge:
        scores = {name: np.array([o.score for o in judge(prompts, of)]) for name, of in texts.items()}
        outcomes[str(options.judge)] = _by_score(scores)
    if options.reward_model:
        rewards = rewards_of(options.reward_model, prompts, list(texts.values()), options, compute)
        outcomes["reward_model"] = _by_score({name: np.array(r) for name, r in zip(names, rewards, strict=True)})
    if options.endpoint:
        name = str(options.endpoint_model)
        outcomes[name], notes[name] = _by_llm(options, prompts, texts)
    # --------------------------------------------------------------------------------------------------- numbers
    found: dict[str, dict[str, Any]] = {}
    for name, of_judge in outcomes.items():
        pairs = compared(of_judge, lengths)
        found[name] = {
            "comparisons": [{**pair, "words": in_words(pair)} for pair in pairs],
            "ratings": ratings(names, of_judge, options.seed),
            **notes[name],
        }
        if people is not None and name != "people":
            found[name]["agreement_with_people"] = with_people(of_judge, people)
    comparison = {
        "n_prompts": len(prompts),
        "overlap": overlap(
            [p.messages for p in prompts],
            [*models.values(), *([options.reward_model] if options.reward_model else [])],
        ),
        "models": {
            name: {
                "path": path,
                "mean_characters": float(lengths[name].mean()),
                "sampling": sampling[name].as_dict() if name in sampling else None,
            }
            for name, path in models.items()
        },
        "judges": found,
    }
    # ----------------------------------------------------------------------------------------------------- save
    files = [options.out / "comparison.json", options.out / "answers.jsonl"]
    write_json(files[0], comparison)
    _write_answers(files[1], prompts, answers)
    say("compare: {words}", words=comparison["overlap"]["words"])  # type: ignore[index]
    for name, of_judge_found in found.items():
        console.print(_table(name, names, of_judge_found))
        for pair in of_judge_found["comparisons"]:
            say("{name}: {words}", name=Text(name), words=pair["words"])
        if together := of_judge_found.get("agreement_with_people"):
            low, high = together["interval"]
            say(
                "{name}: agrees with people in {share} [{low:.0f}, {high:.0f}]",
                name=Text(name),
                share=percent(together["value"]),
                low=100 * low,
                high=100 * high,
            )
    if (verdicts := options.out / "verdicts.jsonl").exists():
        files.append(verdicts)
    work.finish({name: one["ratings"] for name, one in found.items()}, files)
    forget_replies(options.out, directory=True)


def _check(options: CompareOptions, models: dict[str, str]) -> None:
    if len(models) < 2 or len(models) < len(options.models):
        raise UsageError("needs two or more models with different names: name=directory name=directory")
    if not (options.judge or options.reward_model or options.endpoint or options.human):
        raise UsageError("no judge: give --judge, --reward-model, --endpoint or --human")
    if bool(options.endpoint) != bool(options.endpoint_model):
        raise UsageError("--endpoint and --endpoint-model go together")
    if options.rubric and not options.endpoint:
        raise UsageError("--rubric is for --endpoint; other judges have it in their name: --judge openai:MODEL#RUBRIC")
    if options.endpoint_model and options.endpoint_model in (options.judge, "people", "reward_model"):
        raise UsageError(f"--endpoint-model {options.endpoint_model}: another judge has this name")
    for name in options.raw:
        if name not in models:
            raise UsageError(f"no model is named {name!r} in MODELS: {', '.join(models)}")
    if not options.prompts and (sampled := [path for path in models.values() if not Path(path).is_file()]):
        raise UsageError(f"{sampled[0]} needs prompts to answer: give --prompts")


def _answers(
    models: dict[str, str], options: CompareOptions, compute: Compute
) -> tuple[list[Prompt], dict[str, list[ModelAnswer]], dict[str, SamplingParameters]]:
    """The prompts common to all files of answers (and --prompts, if given), each model's answers, and the sampling
    parameters of the models that answered now.

    If a model has several answers to a prompt, the first counts.
    """
    given: dict[str, dict[str, ModelAnswer]] = {}
    for name, path in models.items():
        if Path(path).is_file():
            given[name] = {}
            for answer in read_answers(path, name, options.skip_bad):
                given[name].setdefault(answer.prompt_id, answer)
    if options.prompts:
        wanted = chosen_prompts(options)
    else:
        first = next(iter(given.values())).values()
        wanted = [
            Prompt(messages=a.messages, source=a.source, id=a.prompt_id, answer=a.answer, columns=a.columns)
            for a in first
        ][: options.limit]
    prompts = [p for p in wanted if all(prompt_id(p.messages) in of_model for of_model in given.values())]
    if left_out := len(wanted) - len(prompts):
        say(
            "compare: {left_out:,} of {n:,} prompts left out: not every file has an answer",
            left_out=left_out,
            n=len(wanted),
        )
    if not prompts:
        raise UsageError(f"{', '.join(models.values())}: no prompt has answers in all files")
    answers: dict[str, list[ModelAnswer]] = {}
    sampling = {}
    for name, path in models.items():
        if name in given:
            answers[name] = [given[name][prompt_id(p.messages)] for p in prompts]
            continue
        policy, tokenizer = load_policy(path)
        policy.to(compute.device).eval()
        sampled = answer_all(name, path, policy, tokenizer, prompts, options, compute)
        sampling[name] = sampled.sampling
        answers[name] = [
            ModelAnswer(p.id, p.messages, text, p.source, one.finished, p.answer, p.columns)
            for p, text, one in zip(prompts, sampled.texts, sampled.sampled, strict=True)
        ]
    if len({(one.temperature, one.top_k, one.top_p) for one in sampling.values()}) > 1:
        say("compare: the models are sampled differently, as each recommends; --temperature makes them equal")
    return prompts, answers, sampling


# ------------------------------------------------------------------------------------------------------- the judges


def _by_score(scores: dict[str, np.ndarray]) -> Outcomes:
    return {(a, b): (np.sign(scores[a] - scores[b]) + 1) / 2 for a, b in combinations(scores, 2)}


def _by_people(options: CompareOptions, prompts: Sequence[Prompt], texts: dict[str, list[str]]) -> Outcomes:
    """The mean of people's judgments of each pair of answers; NaN without a judgment, 1/2 for equal answers.

    Raises UsageError if no judgment is about these answers.
    """
    read = load_comparisons(options.human, _human_options(options))
    console.print(read.summary.table("people's comparisons"))
    judged: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for record in read.records:
        prompt = prompt_id(record.prompt) if record.prompt else ""
        if isinstance(record, Vote):
            raise UsageError(f"{options.human[0]}: single votes compare nothing; give pairs or rankings")
        if isinstance(record, Comparison):
            found = [(record.chosen, record.rejected, 0.5 if record.tie else 1.0)]
        else:
            place = {i: number for number, group in enumerate(record.groups) for i in group}
            found = [
                (record.responses[i], record.responses[k], (np.sign(place[k] - place[i]) + 1) / 2)
                for i, k in combinations(range(len(record.responses)), 2)
            ]
        for better, worse, worth in found:
            judged[prompt, better.strip(), worse.strip()].append(worth)
            judged[prompt, worse.strip(), better.strip()].append(1 - worth)
    outcomes = {}
    for a, b in combinations(texts, 2):
        of_pair = [
            judged.get((prompt_id(p.messages), x.strip(), y.strip()))
            for p, x, y in zip(prompts, texts[a], texts[b], strict=True)
        ]
        outcomes[a, b] = np.array([np.nan if own is None else float(np.mean(own)) for own in of_pair])
    if all(np.isnan(outcome).all() for outcome in outcomes.values()):
        raise UsageError(f"{options.human[0]}: no judgment compares two of these answers; give the labelled files")
    return outcomes


def _by_llm(
    options: CompareOptions, prompts: Sequence[Prompt], texts: dict[str, list[str]]
) -> tuple[Outcomes, dict[str, Any]]:
    """Judges each pair in both orders, and measures the position bias. Equal answers are ties, without a request.

    Raises RunError if the server fails, or most replies contain no verdict.
    """
    memory = options.out / "verdicts.jsonl"
    rubric = written_rubric(options.rubric) if options.rubric else ""
    judge = PairwiseJudge(str(options.endpoint), str(options.endpoint_model), memory, rubric)
    jobs = [(a, b, i) for a, b in combinations(texts, 2) for i in range(len(prompts)) if texts[a][i] != texts[b][i]]
    questions = []
    for a, b, i in jobs:
        conversation = prompts[i].messages
        questions += [question(conversation, texts[x][i], texts[y][i]) for x, y in ((a, b), (b, a))]
    with Bar(Text("verdicts of {model}", model=options.endpoint_model), len(questions), unit="verdict") as bar:
        verdicts = [verdict_of(reply) for reply in judge.ask(questions, bar.advance)]
    missing = sum(v is None for v in verdicts)
    if verdicts and missing > len(verdicts) / 2:
        raise RunError(f"{options.endpoint_model}: {missing} of {len(verdicts)} replies have no verdict such as [[A]]")
    outcomes = {pair: np.full(len(prompts), 0.5) for pair in combinations(texts, 2)}
    consistent, decided, first = 0, 0, 0
    for (a, b, i), forward, backward in zip(jobs, verdicts[::2], verdicts[1::2], strict=True):
        own = agreed(forward, backward)
        outcomes[a, b][i] = np.nan if own is None else own
        if forward is not None and backward is not None:
            decided += 1
            consistent += forward == 1 - backward
            first += forward == backward == 1
    return outcomes, {
        "verdicts": len(verdicts),
        "without_verdict": missing,
        "same_in_both_orders": consistent / decided if decided else None,
        "first_in_both_orders": first / decided if decided else None,
    }


# ----------------------------------------------------------------------------------------------------------- output


def _write_answers(path: Path, prompts: Sequence[Prompt], answers: dict[str, list[ModelAnswer]]) -> None:
    """In the format of `wukong evaluate`, so that they can be compared again, or with others."""
    with atomic_open(path) as out:
        for i, prompt in enumerate(prompts):
            line = {
                "prompt_id": prompt.id,
                "source": prompt.source,
                "messages": [m.model_dump() for m in prompt.messages],
                **prompt.for_judges(),
                "answers": {
                    name: {"text": of[i].text, "finish_reason": "stop" if of[i].finished else "length"}
                    for name, of in answers.items()
                },
            }
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _table(judge: str, names: Sequence[str], found: dict[str, Any]) -> Table:
    """Win rates of the row's model over the column's, and ratings."""
    rates = {}
    for pair in found["comparisons"]:
        low, high = pair["interval"]
        equal = pair["length_controlled_win_rate"]
        rates[pair["a"], pair["b"]] = pair["win_rate"], [low, high], equal_length(equal)
        mirrored = None if equal is None else 1 - equal
        rates[pair["b"], pair["a"]] = 1 - pair["win_rate"], [1 - high, 1 - low], equal_length(mirrored)
    title = "wins by {judge}: rate, 95 % interval, (at equal length)"
    table = Table(title=spoken(title, judge=Text(judge.replace("_", " "))))
    table.add_column(spoken("wins of"))
    for name in names:
        table.add_column(spoken("against {name}", name=name), justify="right")
    table.add_column(spoken("rating"), justify="right")
    for a in names:
        cells = []
        for b in names:
            own = rates.get((a, b))
            cells.append(f"{percent(own[0], 0)}\n{spoken(interval(own[1], True))}\n({spoken(own[2])})" if own else "–")
        low, high = (f"{limit:.0f}" for limit in found["ratings"][a]["interval"])
        limits = spoken("{low} to {high}", low=low, high=high)
        table.add_row(a, *cells, f"{found['ratings'][a]['rating']:.0f}\n{limits}")
    return table
