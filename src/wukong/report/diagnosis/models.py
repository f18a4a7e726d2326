"""Checks of pretraining, SFT and reward models: losses that rise or stay, over-fitting, accuracy, the prompt."""

from __future__ import annotations

import math

from wukong.errors import Text
from wukong.report.contents import StepResult
from wukong.report.diagnosis.curves import Trend, curve_of, last_step
from wukong.report.diagnosis.findings import Outcome, Unchecked, problem
from wukong.report.diagnosis.labels import LabelStatistics, Rate
from wukong.report.diagnosis.results import lower_lr, raise_lr, result, result_interval
from wukong.stats import chance_problem
from wukong.training.advice import FEW_STEPS, HARDLY_MOVED

FEWEST_POINTS = 4


def loss_rises(step: StepResult) -> Outcome:
    """The training loss rises from its lowest level, or never gets below its start."""
    code, loss = "lr-too-high", curve_of(step, "loss", FEWEST_POINTS)
    if loss is None:
        return Unchecked(code, Text("{step}: fewer than {n} logged losses", step=step.name, n=FEWEST_POINTS))
    lowest, start = _lowest_level(loss), float(loss.values[0])
    rise = loss.last - lowest
    coin = step.stage == "reward" and loss.last > 1.2
    rose = rise > 0.5 * lowest + 0.1 and rise > 4 * loss.last_error
    never_fell = step.stage != "reward" and loss.last - 4 * loss.last_error > start
    if not (coin or rose or never_fell):
        return None
    evidence = [
        Text(
            "the loss began at {start:.2f}, was {lowest:.2f} at its lowest and {last:.2f} in the last third (loss)",
            start=start, lowest=lowest, last=loss.last,
        )
    ]  # fmt: skip
    norms = curve_of(step, "grad_norm", FEWEST_POINTS)
    if norms is not None:
        evidence.append(Text("the gradient's norm has a median of {median:.2g} (grad_norm)", median=norms.median))
    if coin:
        evidence.append(Text("a coin toss has a loss of 0.69 nats per pair"))
    red = rose or never_fell or loss.last > 2
    return problem(code, step.name, red, evidence, [lower_lr(step)])


def _lowest_level(loss: Trend) -> float:
    """The lowest mean of neighbouring points: a fifth of the curve, at least two."""
    width = max(2, len(loss) // 5)
    means = [float(loss.values[i : i + width].mean()) for i in range(len(loss) - width + 1)]
    return min(means)


def loss_stays(step: StepResult) -> Outcome:
    """SFT hardly changed the model: its loss and its distance from the start."""
    code, loss = "lr-too-low", curve_of(step, "loss", FEWEST_POINTS)
    moved = result(step, "kl_to_start")
    if loss is None or moved is None:
        return Unchecked(code, Text("{step}: no losses, or no distance from the start", step=step.name))
    start = float(loss.values[0])
    fell = (start - loss.last) / start if start > 0 else 0.0
    if fell > 0.15 or moved > 10 * HARDLY_MOVED or loss.last > start:
        return None
    evidence = [
        Text(
            "the loss fell from {start:.2f} to {last:.2f} in {n} steps (loss)",
            start=start, last=loss.last, n=last_step(step),
        ),
        Text("the model moved {moved:.2g} nats per token from where it started (kl_to_start)", moved=moved),
    ]  # fmt: skip
    advice = [raise_lr(step), Text("or give more --epochs")]
    red = moved < 2 * HARDLY_MOVED
    return problem(code, step.name, red, evidence, advice)


MEMORISED, GAP = 0.35, 0.25
"""Training loss over held-out loss, and their difference in nats per token, of a memorised training set."""


def overfitted(step: StepResult) -> Outcome:
    """The held-out loss is far above the training loss, or has risen from its lowest point."""
    code = "overfitted-sft"
    loss, held_out = curve_of(step, "loss", FEWEST_POINTS), curve_of(step, "valid_loss")
    if loss is None or held_out is None:
        return Unchecked(code, Text("{step}: no held-out loss", step=step.name))
    final, best = float(held_out.values[-1]), float(held_out.values.min())
    kept = result(step, "valid_loss")
    kept_best = kept is not None and kept < final * 0.999
    tail = loss.values[-max(2, len(loss) // 5) :]
    train = float(tail.mean())
    several = len(held_out) > 2
    rose = several and final > 1.05 * best
    memorised = train < MEMORISED * final and final - train > GAP
    if not (memorised or rose):
        return None
    evidence = [
        Text(
            "the training loss ends at {train:.2g} nats per token, the held-out loss at {final:.2g} (loss, valid_loss)",
            train=train, final=final,
        )
    ]  # fmt: skip
    if rose:
        at = int(held_out.steps[int(held_out.values.argmin())])
        evidence.append(
            Text("the held-out loss was lowest, {best:.2g}, at step {at}, and rose after it", best=best, at=at)
        )
    if kept_best:
        evidence.append(Text("the weights of that step were kept"))
    # A held-out loss that is lowest at the end says that more training still helps, whatever is memorised.
    red = not kept_best and (final > 1.3 * best or (memorised and (rose or not several)))
    advice = [
        Text("give fewer --epochs or more demonstrations; --dropout 0.1 helps a little"),
        Text("--eval-every keeps the weights of the lowest held-out loss"),
    ]
    return problem(code, step.name, red, evidence, advice)


# -------------------------------------------------------------------------------------------------------- reward model


def at_chance(step: StepResult) -> Outcome:
    """The accuracy on held-out pairs cannot be told from a coin."""
    code, interval = "reward-at-chance", result_interval(step, "valid_accuracy_interval")
    accuracy, pairs, prompts = (result(step, f"valid_{name}") for name in ("accuracy", "pairs", "prompts"))
    if accuracy is None or interval is None or not pairs:
        return Unchecked(code, Text("{step}: no accuracy on held-out pairs", step=step.name))
    if chance_problem(accuracy, interval, int(pairs), None if prompts is None else int(prompts)) is None:
        return None
    low, high = interval
    evidence = [
        Text(
            "on {pairs} held-out pairs it prefers the right answer in {accuracy:.0%} [{low:.0%}, {high:.0%}] "
            "(valid_accuracy)",
            pairs=pairs, accuracy=accuracy, low=low, high=high,
        )
    ]  # fmt: skip
    if (loss := result(step, "valid_loss")) is not None:
        evidence.append(
            Text("its loss on them is {loss:.2f} nats a pair; a coin toss has 0.69 (valid_loss)", loss=loss)
        )
    train = curve_of(step, "accuracy", FEWEST_POINTS)
    if train is not None:
        evidence.append(Text("on its training pairs it ends at {train:.0%} (accuracy)", train=train.last))
    advice = [
        Text("do not train a policy on it; label more, or check the labels: wukong reward-report"),
        Text("if the training accuracy is near one half too, raise --lr or --epochs"),
    ]
    red = high < 0.62
    return problem(code, step.name, red, evidence, advice, "low")


BLIND, DIM = 0.65, 0.8
"""How often the answer to this prompt has to score above the answer to another one."""
PROMPT_DECIDES = 0.15
"""Part of the pairs (`LabelStatistics.prompt_decides`): 0.3 in the kitchen, below 0.1 where only manners differ."""


def reads_no_prompt(step: StepResult, labels: list[LabelStatistics]) -> Outcome:
    """Under a prompt, the answer to another prompt scores as high as its own; and whether the annotators cared."""
    code, accuracy = "reward-blind", result(step, "off_prompt_accuracy")
    interval = result_interval(step, "off_prompt_interval")
    if accuracy is None or interval is None:
        return Unchecked(
            code, Text("{step}: an earlier version did not measure it, or nothing was held out", step=step.name)
        )
    low, high = interval
    if accuracy >= DIM or low > BLIND:
        return None
    evidence = [
        Text(
            "the best answer to a prompt scores above the best answer to another prompt in only {accuracy:.0%} "
            "[{low:.0%}, {high:.0%}] of {n} prompts (off_prompt_accuracy)",
            accuracy=accuracy, low=low, high=high, n=int(result(step, "off_prompt_prompts") or 0),
        )
    ]  # fmt: skip
    cared = next((one for one in labels if one.prompt_decides > PROMPT_DECIDES), None)
    if cared is not None and cared.on_prompt is not None:
        evidence.append(_cared(cared.on_prompt, cared.pairs))
    else:
        evidence.append(
            Text("the labels do not show whether the prompt matters: for style alone, such a model is enough")
        )
    advice = [Text("give --off-prompt 1, or label answers to other prompts as losing")]
    red = cared is not None and accuracy < BLIND
    return problem(code, step.name, red, evidence, advice)


def _cared(rate: Rate, pairs: int) -> Text:
    return Text(
        "where one of two answers shares more rare words with its prompt, annotators preferred it in {value:.0%} "
        "[{low:.0%}, {high:.0%}] of {n} such pairs, of {pairs} in all: the prompt matters to them",
        value=rate.value, low=rate.low, high=rate.high, n=rate.n, pairs=pairs,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- too little

FEW_PAIRS = 300


def too_few_labels(step: StepResult) -> Outcome:
    """A reward model from few pairs or steps: memorised pairs, a wide interval, a loss that is still falling."""
    code, steps, pairs = "too-little", last_step(step), result(step, "train_pairs")
    if not steps or pairs is None:
        return Unchecked(code, Text("{step}: not finished", step=step.name))
    accuracy, interval = result(step, "valid_accuracy"), result_interval(step, "valid_accuracy_interval")
    train = curve_of(step, "accuracy")
    gap = train.last - accuracy if train is not None and len(train) >= 2 and accuracy is not None else 0.0
    few_pairs, few_steps = pairs < FEW_PAIRS, steps < FEW_STEPS
    memorised = gap > 0.12 and train is not None and train.last > 0.9
    if not (few_pairs or few_steps) and not (memorised and pairs < 5 * FEW_PAIRS):
        return None
    evidence = [
        Text("it learnt from {pairs} pairs in {steps} optimiser steps (train_pairs, step)", pairs=pairs, steps=steps)
    ]
    if accuracy is not None and interval is not None:
        evidence.append(
            Text(
                "it prefers the right answer of held-out pairs in {accuracy:.0%} [{low:.0%}, {high:.0%}]",
                accuracy=accuracy, low=interval[0], high=interval[1],
            )
        )  # fmt: skip
    if memorised and train is not None:
        evidence.append(Text("of its training pairs in {train:.0%}: it memorised them", train=train.last))
    weak = accuracy is None or accuracy < 0.8
    red = few_pairs and (weak or memorised) and (few_steps or memorised)
    advice = [Text("label more: wukong reward-report says whether that would help")]
    if few_steps:
        advice.append(Text("give more --epochs or a smaller --batch-size"))
    return problem(code, step.name, red, evidence, advice)


def too_few_steps(step: StepResult) -> Outcome:
    """A model that was still learning when its few steps were over."""
    code, steps = "too-little", last_step(step)
    name = "score" if curve_of(step, "score") else "loss"
    curve = curve_of(step, name)
    if curve is None:
        return Unchecked(code, Text("{step}: nothing was logged", step=step.name))
    if steps >= FEW_STEPS or not step.finished or (name == "score" and steps >= FEW_STEPS // 3):
        return None
    evidence = [
        Text("it had {steps} optimiser steps (step)", steps=steps)
        if name == "loss"
        else Text("it had {steps} iterations (step)", steps=steps)
    ]
    falling = len(curve) >= 3 and abs(curve.values[-1] - curve.values[-2]) > 0.1 * abs(
        curve.values[0] - curve.values[-1]
    )
    if len(curve) >= 2:
        evidence.append(
            Text(
                "{name} went from {first:.3g} to {last:.3g}",
                name=name, first=float(curve.values[0]), last=float(curve.values[-1]),
            )
        )  # fmt: skip
    if falling:
        evidence.append(Text("it was still changing at the end"))
    advice = [Text("give more --episodes") if name == "score" else Text("give more data or --epochs")]
    red = falling and math.isfinite(curve.noise) and steps < FEW_STEPS // 2
    return problem(code, step.name, red, evidence, advice, "low")
