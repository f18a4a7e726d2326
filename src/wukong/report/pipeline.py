"""The pipeline on one page: each step's state and key number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wukong.errors import Text
from wukong.language import counted
from wukong.options import POLICY_STAGES
from wukong.report.contents import Evaluation, RunContents, StepResult
from wukong.report.formatting import duration, number, percent, short


@dataclass
class Node:
    """A step of the pipeline overview. `state`: done, given (not made in this run), unfinished, or not run."""

    key: str
    label: Text
    what: Text
    state: str = "not run"
    figure: str = ""
    figure_label: str = ""
    note: str = ""
    time: Text | str = ""


def pipeline(run: RunContents) -> list[Node]:
    """The pipeline overview: text, base, SFT, samples, labels, reward model, policy, each with its key number, or "not
    run"."""
    policies = [step for step in run.steps if step.stage in POLICY_STAGES]
    policy = policies[-1] if policies else None

    def made_by(stage: str) -> StepResult | None:
        """The stage's step; of several, the one that the policy was made from."""
        steps = run.of_stage(stage)
        ancestor = run.source_of(policy, stage) if policy else None
        return ancestor or (steps[0] if steps else None)

    nodes = [
        _text_node(made_by("tokenize")),
        _model_node(Node("base", Text("[Base model](#base-model)"), Text("continues text")), made_by("pretrain")),
        _model_node(Node("sft", Text("[SFT model](#sft)"), Text("answers")), made_by("sft")),
        _samples_node(made_by("sample")),
        _labels_node(made_by("label")),
        _reward_node(made_by("reward")),
        _policy_node(policy, run.evaluations),
    ]
    sft = made_by("sft")
    if sft and nodes[1].state == "not run" and sft.options.get("model"):
        nodes[1].state, nodes[1].figure = "given", Path(str(sft.options["model"])).name
        nodes[1].figure_label = Text("not trained in this run")
    return nodes


def _begin_node(node: Node, step: StepResult | None) -> bool:
    """Fills in state and time; returns whether there is a result."""
    if step is None:
        return False
    node.state = "done" if step.finished else "unfinished"
    node.time = duration(step.seconds) if step.finished else ""
    return True


def _text_node(step: StepResult | None) -> Node:
    node = Node("text", Text("Text"), Text("tokenised documents"))
    if _begin_node(node, step) and step:
        train = step.results.get("train") or {}
        node.figure, node.figure_label = short(train.get("tokens")), Text("[tokens](#token)")
        if vocabulary := step.results.get("vocab_size"):
            node.note = Text("vocabulary of {n}", n=number(vocabulary))
    return node


def _model_node(node: Node, step: StepResult | None) -> Node:
    if _begin_node(node, step) and step:
        loss = step.results.get("valid_loss") or step.last("valid_loss") or step.last("loss")
        node.figure, node.figure_label = number(loss), Text("[nats](#nat) per token, held out")
        if node.key == "base" and (perplexity := step.last("valid_perplexity")):
            node.figure, node.figure_label = number(perplexity), Text("[perplexity](#perplexity), held out")
        if parameters := step.results.get("parameters"):
            node.note = Text("{n} parameters", n=short(parameters))
        elif kept := (step.results.get("data") or {}).get("kept"):
            node.note = counted(kept, "{n:,} demonstration", "{n:,} demonstrations")
    return node


def _samples_node(step: StepResult | None) -> Node:
    node = Node("samples", Text("Samples"), Text("several answers per prompt"))
    if _begin_node(node, step) and step:
        node.figure, node.figure_label = short(step.n_records), Text("answers" if step.n_records != 1 else "answer")
    return node


def _labels_node(step: StepResult | None) -> Node:
    node = Node("labels", Text("Labels"), Text("which answer is better"))
    if _begin_node(node, step) and step:
        node.figure = short(step.n_records)
        node.figure_label = Text(
            {"ranking": "rankings", "pairs": "pairs"}.get(str(step.options.get("shape")), "labels")
        )
        if judge := step.options.get("judge"):
            errors = step.options.get("error_rate")
            by = Text("by {judge}, {share} errors", judge=Text(str(judge)), share=percent(errors))
            node.note = by if errors else Text("by {judge}", judge=Text(str(judge)))
    return node


def _reward_node(step: StepResult | None) -> Node:
    node = Node("reward", Text("[Reward model](#reward-model)"), Text("scores an answer"))
    if _begin_node(node, step) and step:
        node.figure = percent(step.results.get("valid_accuracy") or step.last("valid_accuracy"))
        node.figure_label = Text("accuracy on held-out pairs")
        if pairs := step.results.get("train_pairs"):
            node.note = counted(pairs, "{n:,} pair", "{n:,} pairs")
    return node


def _policy_node(step: StepResult | None, evaluations: Sequence[Evaluation]) -> Node:
    node = Node("policy", Text("[Policy](#policy)"), Text("trained on the reward"))
    if _begin_node(node, step) and step:
        node.figure, node.figure_label = number(step.last("kl")), Text("nats [KL](#kl-divergence) to SFT")
        best = next((one for e in evaluations for one in e.result.newest_first), None)
        if best:
            node.figure, node.figure_label = percent(best.win_rate), Text("preferred to {model}", model=best.b)
            node.note = Text("{kl} nats [KL](#kl-divergence) in training", kl=number(step.last("kl")))
    return node
