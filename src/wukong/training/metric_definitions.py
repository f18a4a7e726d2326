"""The definition of every logged metric: source of docs/reference/metrics.md and of the texts next to the curves.

`metrics.jsonl` holds names only. A name with a different meaning in one stage has a separate entry, `stage/name`,
which `definition` prefers. After a change here, `make docs` regenerates the pages:

    python -m wukong.training.metric_definitions zh > docs/reference/metrics.zh.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from wukong.language import translate


class Metric(NamedTuple):
    """One metric: its unit, its definition, what good looks like and what goes wrong, and its group."""

    unit: str
    definition: str
    watch: str
    group: str


EVERY_STAGE = "Every training stage"
_LANGUAGE = "Pretraining and SFT"
_REWARD = "Reward model"
_OUTCOME = "Online algorithms: reward and distance"
_POLICY = "Online algorithms: the policy's update"
_VALUE = "Online algorithms: the value model"
_TEXT = "Online algorithms: the responses"
_SPEED = "Online algorithms: where the time goes"
_OFFLINE = "DPO and KTO"
_DISTILLATION = "Distillation"
_EVALUATION = "Evaluation"

METRICS: dict[str, Metric] = {
    # ---------------------------------------------------------------------------------------- every training stage
    "loss": Metric(
        "nats per token",
        "Mean negative log-likelihood of the tokens this step trained on, before its update.",
        "Falls fast, then slowly. A jump that stays means the learning rate is too high.",
        EVERY_STAGE,
    ),
    "lr": Metric(
        "",
        "Learning rate of the step: it rises over the warm-up steps, then follows the schedule.",
        "Nothing to judge; read the other curves against it.",
        EVERY_STAGE,
    ),
    "grad_norm": Metric(
        "",
        "Euclidean norm of the whole gradient before it is clipped to max_grad_norm.",
        "Settles at a small value. Spikes are harmless when rare; a steady rise comes before divergence.",
        EVERY_STAGE,
    ),
    "tokens_per_second": Metric(
        "tokens/s",
        "Tokens processed per second of wall-clock time since the last logged step, including validation and saving.",
        "Level, with dips where the stage validates. A lasting fall means another program is using the processor.",
        EVERY_STAGE,
    ),
    # ---------------------------------------------------------------------------------------- pretraining and SFT
    "perplexity": Metric(
        "tokens",
        "Pretraining: exp(loss), the effective number of equally likely next tokens.",
        "Starts near the vocabulary's size and falls. Comparable between models with the same tokenizer only.",
        _LANGUAGE,
    ),
    "valid_loss": Metric(
        "nats per token",
        "Mean negative log-likelihood of held-out tokens the model never trains on (in SFT those of the answers).",
        "Falls with the training loss. If it rises while that falls, the model overfits; the best weights are kept.",
        _LANGUAGE,
    ),
    "valid_perplexity": Metric(
        "tokens",
        "exp(valid_loss).",
        "As valid_loss: lower is better, and its lowest point is the model that is kept.",
        _LANGUAGE,
    ),
    "valid_bits_per_byte": Metric(
        "bits per byte",
        "Pretraining: valid_loss in bits, divided by the mean number of UTF-8 bytes per token.",
        "Falls. It does not depend on the tokenizer, so it compares models with different vocabularies.",
        _LANGUAGE,
    ),
    "response_tokens": Metric(
        "tokens",
        "SFT: tokens of the assistant's answers in the step's batch, the only ones that count in the loss.",
        "Varies around a level. Very few per step make the gradient noisy; raise the batch size.",
        _LANGUAGE,
    ),
    # ----------------------------------------------------------------------------------------------- reward model
    "reward/loss": Metric(
        "nats per pair",
        "-log sigmoid(r_chosen - r_rejected), the mean over the prompts of the batch (all pairs of a ranking count "
        "as one prompt).",
        "Starts at ln 2 = 0.69, a coin toss, and falls. Near 0 the model has memorised its training pairs.",
        _REWARD,
    ),
    "reward/valid_loss": Metric(
        "nats per pair",
        "The same loss on pairs whose prompts are held out.",
        "Falls below 0.69. Above it the model is overconfident; train for fewer epochs.",
        _REWARD,
    ),
    "accuracy": Metric(
        "fraction of pairs",
        "The fraction of the training batch's pairs in which the chosen answer gets the higher reward.",
        "Rises from 0.5. People agree with each other in 63 to 75 % of real pairs, so near 1.0 is memorisation.",
        _REWARD,
    ),
    "valid_accuracy": Metric(
        "fraction of pairs",
        "The same for pairs whose prompts are held out.",
        "The number that counts. If it levels off below the annotators' agreement, get more or cleaner labels.",
        _REWARD,
    ),
    "margin": Metric(
        "reward",
        "Mean of r_chosen - r_rejected over the training batch, before the reward is normalised.",
        "Grows. If it grows while valid_accuracy does not, the model only becomes more confident.",
        _REWARD,
    ),
    "pairs": Metric(
        "pairs",
        "Pairs in the step's batch; a ranking of K answers without ties has K(K-1)/2.",
        "Nothing to judge: it varies with the size of the rankings.",
        _REWARD,
    ),
    # ------------------------------------------------------------------------------------- online: reward and distance
    "score": Metric(
        "reward",
        "Mean reward of the step's responses: the reward model's score, or for a response that did not end the fixed "
        "score, or its reward minus the penalty. The KL penalty is not part of it.",
        "Rises from about 0 and levels off. A rise with nonsensical responses is reward hacking: raise the "
        "KL coefficient or train a better reward model.",
        _OUTCOME,
    ),
    "score_std": Metric(
        "reward",
        "Standard deviation of `score` over the step's responses.",
        "Starts near 1 (the reward is normalised on the reference's samples) and shrinks as all answers become good. "
        "At 0 there is nothing left to learn from.",
        _OUTCOME,
    ),
    "reward_model_score": Metric(
        "reward",
        "Mean reward before the rule for responses that did not end: the reward model's score, or the sum of all "
        "rewards.",
        "Close to `score`; a gap between them is the cost of unfinished responses.",
        _OUTCOME,
    ),
    "ended_no_better": Metric(
        "fraction of ended responses",
        "Ended responses whose reward is not above --missing-eos-score, the fixed score of those that did not end.",
        "Near 0. Otherwise not ending can pay (a length penalty, rewards on another scale): lower the fixed score, or "
        "use --missing-eos-penalty instead.",
        _OUTCOME,
    ),
    "reward_of.NAME": Metric(
        "its own scale",
        "Mean of one reward, without its weight; NAME is the judge's name or the reward model's directory. "
        "Logged if the reward has several terms.",
        "All rise. One that falls is traded for the others: change the weights.",
        _OUTCOME,
    ),
    "equal_groups": Metric(
        "fraction of prompts",
        "Dynamic sampling: the fraction of all prompts answered in this step whose responses all have the same score. "
        "`score`, `score_std`, `reward_model_score`, `response_length` and `termination_rate` are then means over all "
        "sampled responses too, those of dropped groups included.",
        "Below 0.5. Above, most sampling is wasted: choose prompts that are neither always nor never solved.",
        _OUTCOME,
    ),
    "equal_groups_kept": Metric(
        "fraction of prompts",
        "Dynamic sampling: the fraction of the batch's prompts whose responses all have the same score, as the further "
        "batches did not suffice to replace them.",
        "0. Otherwise the step learns from a smaller batch: raise --dynamic-sampling.",
        _OUTCOME,
    ),
    "further_batches": Metric(
        "batches",
        "Dynamic sampling: batches of prompts answered in this step beyond the first.",
        "Small; each costs as much as the first. It rises as more prompts are always solved.",
        _OUTCOME,
    ),
    "ensemble_std": Metric(
        "reward",
        "Standard deviation of the ensemble's scores of a response, the mean over the step's responses.",
        "Level. A rise means that the policy goes where the reward models know little: early over-optimisation.",
        _OUTCOME,
    ),
    "length_penalty": Metric(
        "reward",
        "Mean length penalty subtracted from the reward, over the step's responses.",
        "Small compared with `score_std`, else the policy only learns to be short.",
        _OUTCOME,
    ),
    "kept_score": Metric(
        "reward",
        "Best of n: mean score of the responses trained on.",
        "Above `score`; when the two meet, all responses to a prompt are equally good and nothing is left to learn.",
        _OUTCOME,
    ),
    "kl": Metric(
        "nats per response",
        "KL divergence of the policy from the frozen reference, as the mean over responses of the sum over tokens of "
        "log pi - log pi_ref (estimator k1; single values may be negative).",
        "Grows steadily and settles. A steep rise means that the policy leaves the language the reward model knows: "
        "the run stops itself when it runs away.",
        _OUTCOME,
    ),
    "kl_k3": Metric(
        "nats per response",
        "The same divergence with estimator k3, exp(-d) - 1 + d with d = log pi - log pi_ref: never negative and "
        "less noisy while the two models are close.",
        "Agrees with `kl`. A lasting difference means that a few very unlikely tokens dominate the sum.",
        _OUTCOME,
    ),
    "kl_penalty_std": Metric(
        "reward",
        "Standard deviation over the step's responses of the KL penalty, kl_coef times the KL of a response.",
        "Small compared with `score_std`. When it is larger, staying close to the reference earns more than a better "
        "score does, and the policy learns to stay: lower the KL coefficient.",
        _OUTCOME,
    ),
    "kl_coef": Metric(
        "reward per nat",
        "beta, the weight of the KL penalty in the reward. Constant, or adapted by the controller to the KL target.",
        "With the controller it falls while the KL is below its target and rises above it. At its limits the target "
        "cannot be met.",
        _OUTCOME,
    ),
    # -------------------------------------------------------------------------------------- online: the policy's update
    "policy_loss": Metric(
        "",
        "The algorithm's loss, averaged over response tokens as it does, and over the updates of the step (for PPO the "
        "clipped objective).",
        "Small, around zero and mostly negative. It does not measure progress, as the data change with the policy: "
        "read `score` and `kl`. A large positive value means that the updates overshoot.",
        _POLICY,
    ),
    "entropy": Metric(
        "nats per token",
        "Mean entropy of the policy's next-token distribution at the responses' tokens.",
        "Falls slowly as the policy becomes more certain. A fall to near 0 is collapse: always the same answer.",
        _POLICY,
    ),
    "approx_kl": Metric(
        "nats per token",
        "How far the updates of one step moved the policy from the one that wrote the responses: half the mean "
        "squared change of the log-probs.",
        "About 0.001 to 0.02. Higher means too large steps: lower the learning rate or the number of PPO epochs.",
        _POLICY,
    ),
    "clip_fraction": Metric(
        "fraction of tokens",
        "The fraction of tokens whose probability ratio left 1 ± clip_range, where PPO stops their gradient.",
        "0 to 0.2. Above, much of the gradient is discarded; if always 0, the steps could be larger.",
        _POLICY,
    ),
    "clip_fraction_high": Metric(
        "fraction of tokens",
        "The part of clip_fraction whose ratio exceeded 1 + clip_range_high; logged only with --clip-range-high.",
        "Falls as that range is raised, while `entropy` falls more slowly.",
        _POLICY,
    ),
    "passes": Metric(
        "",
        "Passes over the batch before its updates reached --max-update-kl; logged only with that option.",
        "Between 1 and --ppo-epochs. If always below 1, the limit or the learning rate does not fit.",
        _POLICY,
    ),
    "importance_weight": Metric(
        "",
        "Mean over the response tokens of min(pi/pi_sampler, --importance-cap), the weight of a token's loss; logged "
        "only with that option.",
        "Close to 1. Far below it, the cap cuts much, or sampler and trainer differ in more than rounding: read "
        "`sampler_logprob_gap`.",
        _POLICY,
    ),
    "ratio_max": Metric(
        "",
        "The largest ratio pi_new / pi_old of a token's probabilities in the step's updates.",
        "Below about 3. Values of 10 or more mean that single tokens are pushed too far.",
        _POLICY,
    ),
    "ratio_min": Metric(
        "",
        "The smallest ratio pi_new / pi_old of a token's probabilities in the step's updates.",
        "Above about 0.3. Near 0, tokens are ruled out in one step.",
        _POLICY,
    ),
    "first_ratio_error": Metric(
        "",
        "Mean |ratio - 1| over the tokens of the step's first minibatch, before any update: old and new log-probs come "
        "from the same weights, so it should be 0.",
        "Below 0.001, in bfloat16 below 0.05: above that the run stops. Anything larger is a bug or active dropout, "
        "not rounding.",
        _POLICY,
    ),
    "sampler_logprob_gap": Metric(
        "nats per token",
        "Mean absolute difference between the log-probs the sampler computed (with its cache, in its precision) and "
        "those the training path recomputes.",
        "1e-5 in float32, about 1e-2 in bfloat16. Larger: sampler and trainer do not run the same model.",
        _POLICY,
    ),
    "grad_norm_policy": Metric(
        "",
        "Norm of the policy's gradient before clipping, the mean over the step's updates.",
        "Level. Growth together with `approx_kl` precedes divergence.",
        _POLICY,
    ),
    "advantage_std": Metric(
        "reward",
        "Standard deviation of the advantages over the step's tokens, before they are whitened.",
        "Falls as the value model learns to predict the reward. Near 0 the update is noise only.",
        _POLICY,
    ),
    "baseline": Metric(
        "reward",
        "REINFORCE: the running mean of the rewards so far, KL penalty included, with which this step's are compared.",
        "Follows `score` from below while that rises.",
        _POLICY,
    ),
    "ptx_loss": Metric(
        "nats per token",
        "Language-model loss on pretraining text that is mixed into the updates (PPO-ptx); logged only with PTX on.",
        "Stays near the base model's validation loss. A rise is forgetting, which PTX is there to prevent.",
        _POLICY,
    ),
    # ---------------------------------------------------------------------------------------- online: the value model
    "value_loss": Metric(
        "reward²",
        "Half the squared error of the value model against the returns, with PPO's clipping; mean over tokens.",
        "Falls quickly in the first steps, then follows the rewards. Growth means that the value model lags behind.",
        _VALUE,
    ),
    "value_error": Metric(
        "reward²",
        "Mean squared difference of the values and the returns of the step, before the update and without clipping.",
        "Falls. It is value_loss without PPO's clipping.",
        _VALUE,
    ),
    "explained_variance": Metric(
        "",
        "1 - Var(returns - values) / Var(returns): the fraction of the variance of the returns that the value "
        "model predicts.",
        "Rises towards 0.5 to 0.9. At 0 it is no better than the mean; below 0 it is worse and adds noise: give it "
        "more steps or a higher learning rate.",
        _VALUE,
    ),
    "value_mean": Metric(
        "reward",
        "Mean of the values over the step's tokens.",
        "Follows return_mean. A constant gap is a bias of the value model.",
        _VALUE,
    ),
    "return_mean": Metric(
        "reward",
        "Mean over tokens of the returns (advantage + value): the remaining reward, including the KL penalty.",
        "Rises with `score`. If it falls while `score` rises, the KL penalty outweighs the gain.",
        _VALUE,
    ),
    "grad_norm_value": Metric(
        "",
        "Norm of the value model's gradient before clipping, the mean over the step's updates.",
        "Large at first, then level. Spikes follow outliers among the rewards.",
        _VALUE,
    ),
    # ------------------------------------------------------------------------------------------ online: the responses
    "response_length": Metric(
        "tokens",
        "Mean length of the step's responses, including the end token.",
        "Near SFT's. A steady rise often means that the reward model mistakes length for quality.",
        _TEXT,
    ),
    "score_length_correlation": Metric(
        "",
        "Pearson correlation of the rewards and the lengths of the step's responses.",
        "Any steady value is fine while lengths stay. Clearly positive while `response_length` rises: the policy is "
        "paid for length.",
        _TEXT,
    ),
    "termination_rate": Metric(
        "fraction of responses",
        "The fraction of responses that the model ended itself, before max_new_tokens.",
        "Above 0.95. A fall means rambling; raise max_new_tokens or the penalty for responses that do not end.",
        _TEXT,
    ),
    "distinct_2": Metric(
        "fraction of bigrams",
        "Distinct bigrams as a fraction of all bigrams in the step's responses.",
        "Near its first value. A fall below 70 % of it is collapse to one phrase.",
        _TEXT,
    ),
    "repetition": Metric(
        "fraction of 4-grams",
        "The fraction of a response's sequences of four tokens that occurred earlier in the same response, the mean "
        "over the step's responses.",
        "Near its first value. A rise means that responses say the same thing again and again.",
        _TEXT,
    ),
    "top_phrase_share": Metric(
        "fraction of responses",
        "The fraction of the step's responses that contain the most widespread sequence of six tokens.",
        "Rises when a manner of speaking is learnt. Near 1, every response has the same phrase in it; read some.",
        _TEXT,
    ),
    "top_response_share": Metric(
        "fraction of responses",
        "The share of the step's responses that are the most frequent one.",
        "Low. A rise means that every prompt gets the same answer; the run stops itself when it dominates.",
        _TEXT,
    ),
    # -------------------------------------------------------------------------------------- online: where the time goes
    "rollout_seconds": Metric(
        "s per step",
        "Time spent sampling the responses.",
        "Usually the largest part; it grows with the length of the responses.",
        _SPEED,
    ),
    "scoring_seconds": Metric(
        "s per step",
        "Time spent on the reward, reference and value models' forward passes and the old log-probs.",
        "Level.",
        _SPEED,
    ),
    "update_seconds": Metric(
        "s per step",
        "Time spent on forward and backward passes and the optimiser.",
        "Level; proportional to the number of PPO epochs.",
        _SPEED,
    ),
    "rollout_tokens_per_second": Metric(
        "tokens/s",
        "Sampled tokens per second of rollout_seconds.",
        "Level. It rises with the batch and falls with the length of the sequences.",
        _SPEED,
    ),
    # ------------------------------------------------------------------------------------------------ DPO and KTO
    "dpo/loss": Metric(
        "nats per pair",
        "The loss of the batch's pairs, all pairs of a record counting as one (with ipo: squared nats).",
        "Starts at ln 2 = 0.69 (ipo: 1/(4 beta²)) and falls.",
        _OFFLINE,
    ),
    "kto/loss": Metric(
        "",
        "Mean over the batch's votes of weight x (1 - sigmoid(beta x gain)).",
        "Starts at 0.5 with weights of 1 and falls.",
        _OFFLINE,
    ),
    "dpo/accuracy": Metric(
        "fraction of pairs",
        "The fraction of the batch's pairs in which the chosen answer has the higher log pi - log pi_ref.",
        "Rises from 0.5. Near 1 long before the end: the pairs are memorised.",
        _OFFLINE,
    ),
    "dpo/margin": Metric(
        "nats x beta",
        "Mean difference of the implied rewards of chosen and rejected answers.",
        "Grows. Values in the tens mean that probabilities go to zero: raise beta, or use ipo or label smoothing.",
        _OFFLINE,
    ),
    "kto/margin": Metric(
        "nats x beta",
        "Mean implied reward of the batch's liked answers minus that of the disliked ones.",
        "Grows.",
        _OFFLINE,
    ),
    "chosen_reward": Metric(
        "nats x beta",
        "Mean implied reward beta (log pi - log pi_ref) of chosen (liked) answers.",
        "Rises, or falls less than that of the rejected ones. A deep fall: probability moves to unrated answers.",
        _OFFLINE,
    ),
    "rejected_reward": Metric(
        "nats x beta",
        "Mean implied reward of rejected (disliked) answers.",
        "Falls.",
        _OFFLINE,
    ),
    "kl_baseline": Metric(
        "nats",
        "KTO: z_0, the mean log pi - log pi_ref of answers paired with other prompts, at least 0.",
        "Stays small. Growth means that the policy changes everywhere, not only on the rated answers.",
        _OFFLINE,
    ),
    "dpo/valid_loss": Metric(
        "nats per pair",
        "The same loss on records whose prompts are held out.",
        "Falls with the training loss; a rise is overfitting: use fewer epochs or a higher beta.",
        _OFFLINE,
    ),
    "kto/valid_loss": Metric(
        "",
        "The same loss on votes whose prompts are held out.",
        "Falls with the training loss; a rise is overfitting.",
        _OFFLINE,
    ),
    "valid_margin": Metric(
        "nats x beta",
        "The margin of held-out records.",
        "Grows with the training margin, but less.",
        _OFFLINE,
    ),
    # ------------------------------------------------------------------------------------------------ distillation
    "distill/loss": Metric(
        "nats per token",
        "KL divergence of the student's next-token distribution from the teacher's, exact over the vocabulary, the "
        "mean over the tokens of the step's responses, before its update.",
        "Falls. Where it levels off, the student cannot follow the teacher further: a larger student, more episodes "
        "or a higher learning rate.",
        _DISTILLATION,
    ),
    "distill/valid_loss": Metric(
        "nats per token",
        "The same divergence on the student's answers to held-out prompts, sampled with the same random numbers at "
        "each validation.",
        "Falls with the loss. A rise while the loss falls means that there are too few prompts.",
        _DISTILLATION,
    ),
    # ------------------------------------------------------------------------------------------------- evaluation
    "evaluate/score_mean": Metric(
        "the scorer's scale",
        "Mean score of a model's answers to the evaluation's prompts by the scorer, which training never saw, with "
        "its 95 % interval.",
        "Rises from base to SFT to policy. Better reward without a better score is over-optimisation.",
        _EVALUATION,
    ),
    "evaluate/reward_mean": Metric(
        "reward",
        "Mean score of the answers by the reward model.",
        "Rises; compare its gain with that of score_mean.",
        _EVALUATION,
    ),
    "evaluate/win_rate": Metric(
        "fraction of prompts",
        "The fraction of prompts on which the judge prefers the first model's answer to the second's; a tie counts "
        "half. With its 95 % interval.",
        "A whole interval above 0.5 means better; an interval across 0.5 shows no difference.",
        _EVALUATION,
    ),
    "evaluate/length_controlled_win_rate": Metric(
        "fraction of prompts",
        "The win rate a model would have if both answers were equally long, from a logistic regression on the "
        "difference of their lengths.",
        "Close to the win rate. A much lower one means that the judge prefers longer answers.",
        _EVALUATION,
    ),
    "evaluate/kl": Metric(
        "nats per response",
        "Mean over the answers of log pi - log pi_ref, summed over tokens, with its 95 % interval.",
        "The cost of the preference: how far the policy moved from SFT. 5 to 25 nats are usual for short answers.",
        _EVALUATION,
    ),
    "evaluate/termination_rate": Metric(
        "fraction of answers",
        "The fraction of answers that the model ended itself.",
        "At least 0.95; a base model does not know where an answer ends.",
        _EVALUATION,
    ),
    "evaluate/length_mean": Metric(
        "tokens",
        "Mean length of the answers.",
        "Similar between the models that are compared.",
        _EVALUATION,
    ),
    "evaluate/distinct_1": Metric(
        "fraction of tokens",
        "Distinct tokens as a fraction of all tokens in a model's answers.",
        "Close to SFT's.",
        _EVALUATION,
    ),
    "evaluate/distinct_2": Metric(
        "fraction of bigrams",
        "Distinct bigrams as a fraction of all bigrams in a model's answers.",
        "Not below 70 % of SFT's: less is the same phrase over and over.",
        _EVALUATION,
    ),
    "evaluate/perplexity": Metric(
        "tokens",
        "exp of the mean negative log-likelihood of held-out pretraining text.",
        "Rises a little in SFT and PPO. A large rise means that the model forgets its language.",
        _EVALUATION,
    ),
    "evaluate/bits_per_byte": Metric(
        "bits per byte",
        "The same likelihood in bits per UTF-8 byte, which does not depend on the tokenizer.",
        "As perplexity.",
        _EVALUATION,
    ),
}


def definition(stage: str, name: str) -> Metric | None:
    """The definition of `name` when logged by `stage`; None if there is none."""
    return METRICS.get(f"{stage}/{name}") or METRICS.get(name) or METRICS.get(name.partition(".")[0] + ".NAME")


ABOUT = (
    "Every number that is logged: its unit, its definition, and what good looks like.",
    "Every training stage appends to `metrics.jsonl` in its directory, one object per logged step, and writes the "
    "same numbers as TensorBoard events. Training metrics are those of the logged step alone, not means since the "
    "last one. Metrics that begin with `valid_` appear on the steps that validate. Logarithms are natural: "
    "1 nat = 1.44 bits. `wukong report` shows every curve with the text below beside it.",
    "`make docs` writes this page from `src/wukong/training/metric_definitions.py`. A test checks that the two "
    "agree and that nothing is logged without a definition.",
)
COLUMNS = ("metric", "unit", "what it is", "what good looks like, what goes wrong")


def as_markdown(language: str = "en") -> str:
    """The page docs/reference/metrics.md or metrics.zh.md."""
    return "\n".join(_page(language)) + "\n"


def _page(language: str) -> Iterator[str]:
    yield f"# {translate(language, 'Metrics')}"
    for paragraph in ABOUT:
        yield ""
        yield translate(language, paragraph)
    for group, entries in groupby(METRICS.items(), key=lambda item: item[1].group):
        anchor = "" if language == "en" else f" {{#{re.sub(r'[^a-z]+', '-', group.lower())}}}"
        yield ""
        yield f"## {translate(language, group)}{anchor}"
        yield ""
        yield "| " + " | ".join(translate(language, column) for column in COLUMNS) + " |"
        yield "|---|---|---|---|"
        for name, metric in entries:
            unit, about, watch = (translate(language, text) for text in (metric.unit, metric.definition, metric.watch))
            cells = (f"`{name.split('/')[-1]}`", unit or "–", about, watch)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(as_markdown(*sys.argv[1:]), end="")
