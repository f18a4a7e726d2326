"""Checks of online training (PPO and its relatives): the size of its steps, the KL, the value model, the sampler."""

from __future__ import annotations

import math

from wukong.errors import Text
from wukong.report.contents import StepResult
from wukong.report.diagnosis.curves import Trend, curve_of, last_step
from wukong.report.diagnosis.findings import Outcome, Unchecked, problem
from wukong.report.diagnosis.results import lower_lr, raise_lr

FEWEST = 6
"""Logged iterations below which most of these checks say nothing."""


def too_short(code: str, step: StepResult) -> Unchecked:
    n = len(step.metrics)
    if n < FEWEST:
        return Unchecked(code, Text("{step}: {n} logged iterations are too few", step=step.name, n=n))
    return Unchecked(code, Text("{step}: an earlier version did not log what this check reads", step=step.name))


# ------------------------------------------------------------------------------------------------- size of the steps

LARGE_STEP, HUGE_STEP = 0.05, 0.3
"""approx_kl in nats per token, the median of the first third: later the schedule lowers the rate, or a policy that the
first steps ruined moves no more. PPO's usual range is 0.001 to 0.02."""
MUCH_CLIPPED = 0.3
"""clip_fraction, the median of the first third."""


def lr_too_high(step: StepResult) -> Outcome:
    """Each iteration moves the policy far: its KL to the policy that wrote the responses, and clipped tokens."""
    moved, clipped = curve_of(step, "approx_kl", 2), curve_of(step, "clip_fraction", 2)
    kl, score = curve_of(step, "kl", 2), curve_of(step, "score", 2)
    if moved is None or kl is None or score is None:
        return too_short("lr-too-high", step)
    share = clipped.early_median if clipped else 0.0
    size = moved.early_median
    if size < LARGE_STEP and share < MUCH_CLIPPED:
        return None
    evidence = [
        Text(
            "early iterations moved the policy by {size:.2g} nats per token (median of approx_kl; 0.001 to 0.02 is "
            "usual)",
            size=size,
        )
    ]
    if clipped:
        evidence.append(Text("{share:.0%} of their tokens were clipped (median of clip_fraction)", share=share))
    jump = float(kl.values[: min(len(kl), 4)].max())
    harmed = False
    if jump > 5:
        harmed = True
        evidence.append(
            Text("the KL to the reference reached {kl:.0f} nats within four logged iterations (kl)", kl=jump)
        )
    if len(score) >= FEWEST and score.z < -3:
        harmed = True
        evidence.append(
            Text("the score fell from {first:.2f} to {last:.2f} (score)", first=score.first, last=score.last)
        )
    red = size >= HUGE_STEP or (harmed and (size >= LARGE_STEP or share >= MUCH_CLIPPED))
    return problem("lr-too-high", step.name, red, evidence, [lower_lr(step)])


TINY_STEP, NO_DISTANCE = 1e-4, 0.05
"""Median approx_kl, nats per token, and KL to the reference, nats per response, of a policy that hardly moves."""


def lr_too_low(step: StepResult) -> Outcome:
    """The policy hardly moves in a step, has not left the reference at the end, and scores no better."""
    moved, k3, score = (curve_of(step, name, FEWEST) for name in ("approx_kl", "kl_k3", "score"))
    if moved is None or k3 is None or score is None:
        return too_short("lr-too-low", step)
    if moved.median > TINY_STEP or k3.last > NO_DISTANCE:
        return None
    evidence = [
        Text(
            "each iteration moved the policy by only {size:.1g} nats per token (median of approx_kl; 0.001 to 0.02 is "
            "usual)",
            size=moved.median,
        ),
        Text(
            "after {n} iterations it is {kl:.2g} nats per response from the reference (kl_k3)",
            n=last_step(step), kl=k3.last,
        ),
        _score_change(score),
    ]  # fmt: skip
    red = score.z < 3
    return problem("lr-too-low", step.name, red, evidence, [raise_lr(step)])


def _score_change(score: Trend) -> Text:
    if abs(score.z) < 3:
        return Text(
            "the score went from {first:.2f} to {last:.2f}, which its noise of ±{noise:.2f} per iteration explains",
            first=score.first, last=score.last, noise=score.noise,
        )  # fmt: skip
    return Text("the score went from {first:.2f} to {last:.2f}", first=score.first, last=score.last)


# ---------------------------------------------------------------------------------------------------------------- KL

DOMINANT = 1.0
"""The spread of the KL penalty between responses over that of the scores: above it the penalty decides."""
LITTLE_GAIN = 0.25
"""Of a standard deviation of the scores."""
HELD = 5.0
"""Nats per response; a policy further away is not held back by the penalty."""


def kl_coefficient_too_high(step: StepResult) -> Outcome:
    """The KL penalty differs more between responses than the score, so staying put pays, and the score stays."""
    penalty, spread, score, kl = (
        curve_of(step, name, FEWEST) for name in ("kl_penalty_std", "score_std", "score", "kl")
    )
    if penalty is None or spread is None or score is None or kl is None:
        return too_short("kl-coefficient-too-high", step)
    ratio = penalty.last / spread.last if spread.last > 0 else 0.0
    gain = score.gain / spread.first if spread.first > 0 else 0.0
    if ratio < DOMINANT / 2 or kl.last > HELD or gain > 2 * LITTLE_GAIN:
        return None
    if ratio < DOMINANT and gain > LITTLE_GAIN:
        return None
    evidence = [
        Text(
            "between responses the KL penalty varies by {penalty:.2g}, the score by {spread:.2g} (kl_penalty_std, "
            "score_std): {ratio:.1f} times as much",
            penalty=penalty.last, spread=spread.last, ratio=ratio,
        ),
        _score_change(score),
        Text("the policy stays {kl:.2g} nats per response from the reference (kl)", kl=kl.last),
    ]  # fmt: skip
    red = ratio > DOMINANT and gain < LITTLE_GAIN
    lower = [Text("lower --kl-coef by a factor of {factor:.0f} or more", factor=max(3.0, 5 * ratio))]
    return problem("kl-coefficient-too-high", step.name, red, evidence, lower)


FAR, TOO_FAR = 20.0, 35.0
"""Nats per response. Published runs on short answers end at 5 to 25."""


def kl_runaway(step: StepResult) -> Outcome:
    """The policy went further from the reference than a reward model can judge, and what that did to its text."""
    kl = curve_of(step, "kl", 3)
    if kl is None:
        return too_short("kl-runaway", step)
    last = float(kl.values[-1])
    top = max(kl.highest, last if not step.finished else 0.0)
    if top < FAR:
        return None
    middle = float(kl.values[len(kl) // 3 : 2 * len(kl) // 3 + 1].mean())
    rising = kl.last > 1.3 * middle
    evidence = [
        Text("the KL to the reference reached {top:.0f} nats per response (kl; 5 to 25 are usual)", top=top),
        Text("it was {middle:.0f} in the middle of the run and {last:.0f} at its end", middle=middle, last=kl.last),
    ]
    evidence += filter(None, [_fell(step, "entropy"), _fell(step, "distinct_2"), _fell(step, "score")])
    advice = [
        Text("raise --kl-coef, or give --kl-target 10"),
        Text("lower --lr"),
        Text("keep policies on the way with --save-every, and choose one with wukong frontier"),
    ]
    red = top > TOO_FAR or (rising and not step.finished)
    return problem("kl-runaway", step.name, red, evidence, advice)


FALLS = {
    "entropy": "the entropy fell from {first:.2g} to {last:.2g} nats per token (entropy)",
    "distinct_2": "the share of distinct bigrams fell from {first:.0%} to {last:.0%} (distinct_2)",
    "score": "the score fell from {first:.2f} to {last:.2f} (score)",
}


def _fell(step: StepResult, name: str) -> Text | None:
    curve = curve_of(step, name, FEWEST)
    if curve is None or curve.z > -3 or (curve.first > 0 and curve.last > 0.8 * curve.first):
        return None
    return Text(FALLS[name], first=curve.first, last=curve.last)


# ------------------------------------------------------------------------------------------------- value model, sampler

NOTHING, LITTLE = 0.1, 0.3
"""Explained variance of the returns in the last third."""


def value_model(step: StepResult) -> Outcome:
    """The value model explains no part of the returns' variance, also at the end."""
    explained = curve_of(step, "explained_variance", FEWEST)
    if explained is None:
        return None if curve_of(step, "score") and not curve_of(step, "value_loss") else too_short("value-model", step)
    high = explained.last + 2 * explained.last_error
    if explained.last >= LITTLE:
        return None
    evidence = [
        Text(
            "in the last third the value model explains {last:.0%} of the returns' variance (explained_variance; above "
            "50% is usual)",
            last=explained.last,
        ),
        Text("in the first iterations it was {first:.0%}", first=explained.first),
    ]
    error = curve_of(step, "value_error", FEWEST)
    if error is not None:
        evidence.append(
            Text(
                "its squared error went from {first:.2g} to {last:.2g} (value_error)",
                first=error.first, last=error.last,
            )
        )  # fmt: skip
    advice = [Text("raise --value-coef, or give it more iterations")]
    if step.options.get("value_model") == "shared":
        advice.append(Text("give it a trunk of its own: --value-model separate"))
    # A value model whose error falls is learning, only late.
    learns = error is not None and error.last < 0.8 * error.first and error.z < -3
    red = high < NOTHING + 0.05 and not learns
    return problem("value-model", step.name, red, evidence, advice)


GAP, LARGE_GAP = 0.02, 0.05
"""Nats per token between the log-probs of sampler and trainer; rounding makes 1e-5 (float32) to 1e-2 (bfloat16)."""
RATIO_GAP = 0.01


def sampler_mismatch(step: StepResult) -> Outcome:
    """The sampler's log-probs of its own tokens are not those that the trainer computes."""
    gap, ratio = curve_of(step, "sampler_logprob_gap"), curve_of(step, "first_ratio_error")
    if gap is None:
        return too_short("sampler-mismatch", step)
    first = ratio.median if ratio else 0.0
    size = max(gap.median, gap.last if len(gap) >= FEWEST else 0.0)
    if size < GAP and first < RATIO_GAP:
        return None
    evidence = [
        Text(
            "the log-probs of sampler and trainer differ by {gap:.2g} nats per token (sampler_logprob_gap; rounding "
            "explains 0.01)",
            gap=size,
        )
    ]
    if len(gap) >= FEWEST and gap.z > 3 and gap.last > 2 * abs(gap.first):
        evidence.append(
            Text(
                "the difference grew from {first:.2g} to {last:.2g}: the sampler may use older weights",
                first=gap.first, last=gap.last,
            )
        )  # fmt: skip
    if ratio and first >= RATIO_GAP:
        evidence.append(Text("before any update the ratio is off 1 by {ratio:.2g} (first_ratio_error)", ratio=first))
    kl = curve_of(step, "kl", FEWEST)
    if kl is not None and kl.values.min() < -3 * kl.noise - 0.1 and math.isfinite(kl.noise):
        evidence.append(Text("the measured KL is negative ({kl:.2g} nats), which it cannot be", kl=kl.values.min()))
    advice = [
        Text("use --precision float32; if that does not help, sampler and trainer run different models: report it")
    ]
    red = size >= LARGE_GAP or first >= 0.05
    return problem("sampler-mismatch", step.name, red, evidence, advice)


CHECKS = {
    "lr-too-high": lr_too_high,
    "lr-too-low": lr_too_low,
    "kl-coefficient-too-high": kl_coefficient_too_high,
    "kl-runaway": kl_runaway,
    "value-model": value_model,
    "sampler-mismatch": sampler_mismatch,
}
