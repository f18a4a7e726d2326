"""`wukong evaluate`: models + unseen prompts -> which answers better, by how much, and at what KL.

In:  named models, prompts that no stage has seen, a judge, a reward model, held-out text.
Out: out/evaluation.json (the numbers) and out/answers.jsonl (every answer, with score and reasons).

    wukong evaluate --models base=runs/mine/base sft=runs/mine/sft policy=runs/mine/policy --raw base
        --prompts test.jsonl --judge rubric --reward-model runs/mine/reward --out runs/mine/evaluation

All models answer the same prompts with the same seeds. Each model is compared with every earlier one, prompt by
prompt, by each judge's score; ties count half; intervals are 95 %, over prompts (`wukong.stats`). The
length-controlled win rate is what a logistic regression on the difference in length predicts for answers of equal
length (Dubois et al. 2024). KL is log pi - log pi_ref of the model's own samples at the sampling temperature, summed
over a response.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from wukong import require
from wukong.console import Bar, console, say
from wukong.data.batches import by_length, pad
from wukong.data.overlap import overlap
from wukong.data.prompts import PROMPTS, PromptOptions, load_prompts
from wukong.data.shards import TokenShards
from wukong.data.split import split_by_prompt
from wukong.errors import DataError, Text, UsageError
from wukong.feedback.annotators import load_judge
from wukong.feedback.judge import Judge, Opinion
from wukong.feedback.replies import forget_replies, replies_path
from wukong.feedback.reward_models import is_model, reward_judge
from wukong.files import atomic_open, write_json
from wukong.model.hub import load_policy, recommended_sampling
from wukong.model.language_model import LanguageModel
from wukong.objectives import best_of_n_kl
from wukong.options import StageOptions
from wukong.records import Prompt
from wukong.require import Need
from wukong.rollout import Sampled, generate, inference_copy
from wukong.sampling import OWN_DISTRIBUTION, SamplingParameters
from wukong.scoring import response_logprobs, response_positions, validation_loss
from wukong.seeds import derived_seed
from wukong.stats import distinct_n, in_words, mean_interval, rate_interval
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute, Precision, compute_for


class AnswerOptions(StageOptions, PromptOptions):
    """How models answer the prompts they are compared on."""

    prompts: list[str]
    """Prompts not used in training."""
    raw: list[str] = []
    """Names of models that get the plain text without the chat template, as for a base model."""
    holdout: float = Field(0.0, ge=0, lt=1)
    """Use only this fraction of the prompts: those that ppo leaves out with the same --holdout and --seed."""
    limit: int | None = Field(None, ge=1)
    """Use only the first N prompts."""
    max_new_tokens: int = Field(128, ge=1)
    """Maximum response length, in tokens."""
    temperature: float | None = Field(None, ge=0)
    """Sampling temperature; 0 is greedy. Default: what each model recommends (generation_config.json), else 1."""
    batch_size: int = Field(128, ge=1)
    """Responses decoded together."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Tokens per forward pass when scoring."""
    precision: Precision = "auto"
    """bfloat16 where it is faster, or as named."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (an Apple GPU)."""


class EvaluateOptions(AnswerOptions):
    """Compare models on unseen prompts."""

    models: list[str]
    """name=directory of each model, oldest first; each is compared with all before it."""
    reference: str | None = None
    """The name of the model KL is measured against, usually the SFT model."""
    best_of: list[str] = []
    """name=N: the model answers each prompt N times and --best-of-reward picks one: best-of-n as a policy."""
    best_of_reward: str | None = None
    """What picks the best: a reward model's directory (usually the one used in training), or a judge's name."""
    judge: str | None = None
    """rubric (the kitchen's), lexicon (VADER sentiment), a verifier (exact, number, regex[:PATTERN],
    json[:SCHEMA.json], constraints), openai:MODEL[@URL][#RUBRIC], or module:function."""
    reward_model: str | None = None
    """A reward model as a second judge, preferably one no policy was trained on."""
    text: Path | None = None
    """Directory of `wukong tokenize`, whose validation text is used to measure perplexity, in windows of the model's
    context, at most 1,024 tokens."""
    eval_tokens: int = Field(65536, ge=1)
    """Maximum number of held-out tokens to read."""


@dataclass
class Answers:
    """One model's answers to all prompts."""

    prompt_ids: list[list[int]]
    sampled: list[Sampled]
    texts: list[str]
    opinions: list[Opinion] | None = None
    rewards: list[float] | None = None
    kl: np.ndarray | None = None  # (prompts,) nats
    perplexity: float | None = None
    bits_per_byte: float | None = None
    path: str = ""
    best_of: int = 1
    sampling: SamplingParameters = OWN_DISTRIBUTION


@dataclass(frozen=True)
class Picker:
    """Best-of-n: how many answers each of these models gives per prompt, and what picks one of them."""

    counts: dict[str, int]
    judge: Judge


@dataclass(frozen=True)
class Reference:
    """The model KL is measured against."""

    model: LanguageModel
    tokenizer: Tokenizer


def answer_needs(models: Sequence[str], options: AnswerOptions) -> list[Need]:
    """The inputs needed to answer prompts."""
    return [
        *map(require.policy, models),
        *(require.room(model, options.max_new_tokens) for model in models),
        *require.data(options.prompts, require.reader(PROMPTS, options)),
        require.device(options.device),
    ]


def needs(options: EvaluateOptions) -> list[Need]:
    models = _models(options)
    for name in [*options.raw, *([options.reference] if options.reference else [])]:
        if name not in models:
            raise UsageError(f"no model is named {name!r} in --models: {', '.join(models)}")
    best_of_counts(options, models)
    judges = (options.judge, options.best_of_reward)
    return [  # judges first: a name that contains a secret must be refused before anything is printed
        *([require.judge(options.judge, model=False)] if options.judge else []),
        *([require.judge(options.best_of_reward)] if options.best_of_reward else []),
        *answer_needs(list(models.values()), options),
        *require.judged_prompts(options.prompts, options, [one for one in judges if one]),
        *([require.reward_model(options.reward_model)] if options.reward_model else []),
        *([require.shards(options.text, ("valid",))] if options.text else []),
    ]


def _models(options: EvaluateOptions) -> dict[str, str]:
    return require.distinct_names([named(model) for model in options.models], "--models")


def run(options: EvaluateOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the judge fails."""
    work = require.open_stage("evaluate", options, needs(options))
    if work.done:
        return
    models = _models(options)
    judge = load_judge(options.judge, replies_path(options.out, directory=True)) if options.judge else None
    counts = best_of_counts(options, models)
    compute = compute_for(options.precision, options.device)
    prompts = chosen_prompts(options)
    # --------------------------------------------------------------------------------------------------- answers
    reference = None
    if options.reference:
        model, tokenizer = load_policy(models[options.reference])
        reference = Reference(model.to(compute.device).eval(), tokenizer)
    picker = Picker(counts, _picking_judge(options, compute)) if counts else None
    answers = {}
    for name, path in models.items():
        policy, tokenizer = load_policy(path)
        policy.to(compute.device).eval()
        one = answers[name] = answer_all(name, path, policy, tokenizer, prompts, options, compute, picker)
        if reference is not None and one.best_of == 1 and name not in options.raw and one.sampling.has_kl:
            if tokenizer.fingerprint != reference.tokenizer.fingerprint:
                raise UsageError(f"{path}: its tokenizer is not the reference's, so their KL is meaningless")
            one.kl = kl_of(policy, reference.model, one, options, compute)
        if options.text:
            _measure_text(one, policy, tokenizer, options, compute)
        if judge:
            one.opinions = judge(prompts, one.texts)
    if options.reward_model:
        texts = [one.texts for one in answers.values()]
        for one, rewards in zip(
            answers.values(), rewards_of(options.reward_model, prompts, texts, options, compute), strict=True
        ):
            one.rewards = rewards
    # --------------------------------------------------------------------------------------------------- numbers
    names = list(models)
    comparisons = []
    for i, a in enumerate(names):
        for b in reversed(names[:i]):
            comparisons += compare(a, b, answers[a], answers[b], options)
    options.out.mkdir(parents=True, exist_ok=True)
    judged_by = [one for one in (options.reward_model, options.best_of_reward) if one and is_model(one)]
    evaluation = {
        "n_prompts": len(prompts),
        "overlap": overlap([p.messages for p in prompts], [*models.values(), *judged_by]),
        "scorer": options.judge,
        "reward_model": options.reward_model,
        "temperature": common_temperature(answers.values()),
        "max_new_tokens": options.max_new_tokens,
        "seed": options.seed,
        "models": {name: describe(one, prompts, options) for name, one in answers.items()},
        "comparisons": comparisons,
    }
    write_json(options.out / "evaluation.json", evaluation)
    with atomic_open(options.out / "answers.jsonl") as out:
        for i, prompt in enumerate(prompts):
            line = {
                "prompt_id": prompt.id,
                "source": prompt.source,
                "messages": [m.model_dump() for m in prompt.messages],
                **prompt.for_judges(),
                "answers": {name: _answer(one, i) for name, one in answers.items()},
            }
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    say("evaluate: {words}", words=evaluation["overlap"]["words"])  # type: ignore[index]
    for c in comparisons:
        say("evaluate: by {judge}, {verdict}", judge=Text(c["judge"]), verdict=in_words(c))
    work.finish({"comparisons": comparisons}, [options.out / "evaluation.json", options.out / "answers.jsonl"])
    forget_replies(options.out, directory=True)


def common_temperature(answers: Iterable[Answers]) -> float | None:
    """The temperature all models share; None if they differ (see each model's `sampling`)."""
    temperatures = {one.sampling.temperature for one in answers}
    return temperatures.pop() if len(temperatures) == 1 else None


def named(model: str) -> tuple[str, str]:
    """("policy", "runs/x/policy") for "policy=runs/x/policy" and for plain "runs/x/policy"."""
    name, separator, path = model.partition("=")
    return (name, path) if separator else (Path(model).name, model)


def chosen_prompts(options: AnswerOptions) -> list[Prompt]:
    """The prompts to answer. Raises UsageError if none is left."""
    read = load_prompts(options.prompts, options)
    console.print(read.summary.table("prompts read"))
    held_out = split_by_prompt(read.records, options.holdout, options.seed)[1] if options.holdout else read.records
    if not held_out:
        raise UsageError(f"{options.prompts[0]}: no prompt is left to evaluate on")
    return held_out[: options.limit]


MOST_ANSWERS = 10_000
"""Per prompt, in best-of-n."""


def best_of_counts(options: EvaluateOptions, models: dict[str, str]) -> dict[str, int]:
    """name -> N of --best-of. Raises UsageError for a bad N or an unknown model."""
    counts = {}
    for given in options.best_of:
        name, _, number = given.partition("=")
        if name not in models or not number.isdecimal() or len(number) > 5 or not 2 <= int(number) <= MOST_ANSWERS:
            known = ", ".join(models)
            fits = f"N from 2 to {MOST_ANSWERS:,}"
            raise UsageError(f"--best-of {given[:80]}: write name=N with {fits} and a name of --models ({known})")
        counts[name] = int(number)
    if bool(counts) != bool(options.best_of_reward):
        raise UsageError("--best-of and --best-of-reward go together")
    return counts


def _picking_judge(options: EvaluateOptions, compute: Compute) -> Judge:
    name = str(options.best_of_reward)
    if is_model(name):
        return reward_judge(name, compute, options.micro_batch_tokens)
    return load_judge(name, replies_path(options.out, directory=True))


def pick_best(
    sampled: Sequence[Sampled], prompts: Sequence[Prompt], n: int, judge: Judge, tokenizer: Tokenizer
) -> list[Sampled]:
    """The best of each prompt's n consecutive answers. Answers that the model ended go first, as training gives the
    others no credit. Of equals, the first."""
    asked = [prompt for prompt in prompts for _ in range(n)]
    scores = [opinion.score for opinion in judge(asked, [tokenizer.decode(one.ids) for one in sampled])]
    ranks = [(one.finished, score) for one, score in zip(sampled, scores, strict=True)]
    starts = range(0, len(sampled), n)
    return [sampled[max(range(at, at + n), key=lambda i: (ranks[i], -i))] for at in starts]


def answer_all(
    name: str, path: str, policy: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Prompt],
    options: AnswerOptions, compute: Compute,
    picker: Picker | None = None,
) -> Answers:  # fmt: skip
    """Samples an answer to each prompt, with the same random numbers for every model."""
    room = policy.config.n_positions - options.max_new_tokens
    raw = name in options.raw
    try:
        ids = [
            tokenizer.raw_ids(p.messages[-1].content) if raw else tokenizer.prompt_ids(p.messages, max_tokens=room)
            for p in prompts
        ]
    except DataError as error:
        raise DataError(error.problem, file=options.prompts[0], hint="lower --max-new-tokens or shorten it") from None
    n = picker.counts.get(name, 1) if picker else 1
    sampling = recommended_sampling(path).unless_given(path, options.temperature)
    say("answers of {name}: {sampling}", name=name, sampling=sampling.in_words())
    first = [derived_seed(options.seed, "evaluate", p.id) for p in prompts]  # the same for all models
    with Bar(Text("answers of {name}", name=name), len(prompts) * n, unit="response") as bar:
        sampled = generate(
            inference_copy(policy, compute),
            [prompt for prompt in ids for _ in range(n)],
            eos_id=tokenizer.eos_ids,
            max_new_tokens=options.max_new_tokens,
            seeds=[derived_seed(seed, k) if k else seed for seed in first for k in range(n)],
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            batch_size=options.batch_size,
            on_finish=bar.advance,
        )
    if picker and n > 1:
        sampled = pick_best(sampled, prompts, n, picker.judge, tokenizer)
    return Answers(ids, sampled, [tokenizer.decode(s.ids) for s in sampled], path=path, best_of=n, sampling=sampling)


def rewards_of(
    reward_model: str, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]], options: AnswerOptions,
    compute: Compute,
) -> list[list[float]]:  # fmt: skip
    """The scores of several models' answers; all answers to a prompt are read with the same prompt tokens. Raises
    UsageError for an answer that does not fit."""
    judge = reward_judge(reward_model, compute, options.micro_batch_tokens)
    asked = [prompt for _ in texts for prompt in prompts]
    scores = [opinion.score for opinion in judge(asked, [text for of_model in texts for text in of_model])]
    return [scores[at : at + len(prompts)] for at in range(0, len(scores), len(prompts))]


LONGEST_WINDOW = 1024
"""Tokens of text read together for perplexity."""


def _measure_text(
    answers: Answers, policy: LanguageModel, tokenizer: Tokenizer, options: EvaluateOptions, compute: Compute
) -> None:
    shards = TokenShards.open(f"{options.text}/valid", tokenizer)
    window = min(policy.config.n_positions, LONGEST_WINDOW)
    loss = validation_loss(policy, shards, window, options.eval_tokens, compute)
    answers.perplexity = math.exp(loss)
    answers.bits_per_byte = loss / math.log(2) / shards.bytes_per_token


@torch.inference_mode()
def kl_of(
    policy: LanguageModel, reference: LanguageModel, answers: Answers, options: AnswerOptions, compute: Compute
) -> np.ndarray:
    """sum_t log pi - log pi_ref of each answer (nats), both recomputed by the same code path. (prompts,)"""
    sequences = [p + s.ids for p, s in zip(answers.prompt_ids, answers.sampled, strict=True)]
    kl = np.zeros(len(sequences))
    for rows in by_length([len(s) for s in sequences], options.micro_batch_tokens):
        ids, _ = pad([sequences[i] for i in rows])
        prompts, responses = ([len(answers.prompt_ids[i]) for i in rows], [len(answers.sampled[i].ids) for i in rows])
        predicts = response_positions(prompts, responses, ids.shape[1]).to(compute.device)
        ids = ids.to(compute.device)
        of_policy, of_reference = (
            response_logprobs(model, ids, predicts, answers.sampling.temperature, compute)[0]
            for model in (policy, reference)
        )
        kl[rows] = [float(part.sum()) for part in (of_policy - of_reference).split(responses)]
    return kl


# ------------------------------------------------------------------------------------------------------- the numbers


def describe(answers: Answers, prompts: Sequence[Prompt], options: EvaluateOptions) -> dict[str, Any]:
    """One model's entry in evaluation.json."""
    ids = [s.ids for s in answers.sampled]
    scores = None if answers.opinions is None else np.array([o.score for o in answers.opinions])

    def mean(values: np.ndarray | None) -> tuple[float | None, list[float] | None]:
        if values is None:
            return None, None
        return float(values.mean()), mean_interval(values)

    score_mean, score_interval = mean(scores)
    kl_mean, kl_interval = mean(answers.kl)
    if (
        answers.best_of > 1
        and options.reference
        and answers.path == dict(map(named, options.models))[options.reference]
    ):
        kl_mean = best_of_n_kl(answers.best_of)  # the picked answers' log-ratios say nothing here
    rewards = None if answers.rewards is None else np.array(answers.rewards)
    return {
        "path": answers.path,
        "best_of": answers.best_of,
        "sampling": answers.sampling.as_dict(),
        "score_mean": score_mean,
        "score_std": None if scores is None else float(scores.std()),
        "score_interval": score_interval,
        "reward_mean": None if rewards is None else float(rewards.mean()),
        "reward_std": None if rewards is None else float(rewards.std()),
        "kl": kl_mean,
        "kl_interval": kl_interval,
        "termination_rate": float(np.mean([s.finished for s in answers.sampled])),
        "length_mean": float(np.mean([len(i) for i in ids])),
        "distinct_1": distinct_n(ids, 1),
        "distinct_2": distinct_n(ids, 2),
        "perplexity": answers.perplexity,
        "bits_per_byte": answers.bits_per_byte,
        "checks": _check_rates(answers.opinions or []),
        "check_counts": dict(Counter(name for opinion in answers.opinions or [] for name in opinion.checks)),
        "by_source": _by_source(answers, prompts),
    }


def _check_rates(opinions: Sequence[Opinion]) -> dict[str, float]:
    """How often each check passed, where it applied."""
    found: dict[str, list[bool]] = defaultdict(list)
    for opinion in opinions:
        for name, passed in opinion.checks.items():
            found[name].append(passed)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _by_source(answers: Answers, prompts: Sequence[Prompt]) -> dict[str, Any]:
    result = {}
    for source in sorted({p.source for p in prompts}):
        opinions = [o for p, o in zip(prompts, answers.opinions or [], strict=False) if p.source == source]
        if opinions:
            scores = [o.score for o in opinions]
            result[source] = {"n": len(scores), "score_mean": float(np.mean(scores)), "checks": _check_rates(opinions)}
    return result


def compare(a: str, b: str, of_a: Answers, of_b: Answers, options: EvaluateOptions) -> list[dict[str, Any]]:
    """a against b, by each judge."""
    judged: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    if of_a.opinions is not None and of_b.opinions is not None:
        judged[str(options.judge)] = [o.score for o in of_a.opinions], [o.score for o in of_b.opinions]
    if of_a.rewards is not None and of_b.rewards is not None:
        judged["reward_model"] = of_a.rewards, of_b.rewards
    lengths = np.array([len(x.ids) - len(y.ids) for x, y in zip(of_a.sampled, of_b.sampled, strict=True)], dtype=float)
    found = []
    for judge, (scores_a, scores_b) in judged.items():
        outcome = (np.sign(np.array(scores_a) - np.array(scores_b)) + 1) / 2
        found.append({"a": a, "b": b, "judge": judge, **win_rate(outcome, lengths)})
    return found


def win_rate(outcome: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """How often a wins against b, with its 95 % interval over prompts and what it would be at equal length.

    outcome: (prompts,) 1 won, 0.5 tied, 0 lost, or a mean of several judgments; lengths: (prompts,) a's minus b's.
    """
    return {
        "n": len(outcome),
        "wins": int((outcome > 0.5).sum()),
        "ties": int((outcome == 0.5).sum()),
        "losses": int((outcome < 0.5).sum()),
        "win_rate": float(outcome.mean()),
        "interval": rate_interval(outcome),
        "length_controlled_win_rate": length_controlled(outcome, lengths),
    }


def length_controlled(outcome: np.ndarray, lengths: np.ndarray) -> float | None:
    """P(win) = sigmoid(a + b tanh(d / sd(d))), fitted by maximum likelihood, read at d = 0.

    outcome: (prompts,) 1, 0.5 or 0; lengths: (prompts,) the difference of the lengths.

    Returns:
        None if the outcomes do not determine it: the length difference is the same everywhere, or a threshold on it
        separates wins from losses (as when all prompts are won), so the likelihood has no maximum (Albert and
        Anderson 1984). A penalty would give a number, but one set by the penalty.
    """
    if not lengths.any():
        return float(outcome.mean())
    if (spread := lengths.std()) == 0:
        return None
    x = np.tanh(lengths / spread)
    won, lost = x[outcome > 0], x[outcome < 1]  # a tie counts half for each
    if not len(won) or not len(lost) or won.min() >= lost.max() or lost.min() >= won.max():
        return None
    design = np.stack([np.ones_like(x), x], 1)  # (prompts, 2)

    def loss(w: np.ndarray) -> float:
        z = design @ w
        return float(np.mean(np.logaddexp(0, z) - outcome * z))

    def gradient(w: np.ndarray) -> np.ndarray:
        result: np.ndarray = design.T @ (expit(design @ w) - outcome) / len(x)
        return result

    def hessian(w: np.ndarray) -> np.ndarray:
        p = expit(design @ w)
        result: np.ndarray = (design.T * (p * (1 - p))) @ design / len(x)
        return result

    from scipy.optimize import minimize  # imported here: it would slow every `wukong run` by half a second
    from scipy.special import expit

    fitted = minimize(loss, np.zeros(2), jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-9})
    return float(expit(fitted.x[0]))


def _answer(answers: Answers, i: int) -> dict[str, Any]:
    """One answer's entry in answers.jsonl."""
    sampled = answers.sampled[i]
    entry: dict[str, Any] = {
        "text": answers.texts[i],
        "finish_reason": "stop" if sampled.finished else "length",
        "n_tokens": len(sampled.ids),
    }
    if answers.opinions is not None:
        entry |= {"score": answers.opinions[i].score, "reasons": answers.opinions[i].reasons}
    if answers.rewards is not None:
        entry["reward"] = answers.rewards[i]
    if answers.kl is not None:
        entry["kl"] = float(answers.kl[i])
    return entry
