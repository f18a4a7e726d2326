"""`wukong sft`: a base model + demonstrations -> a model that answers (supervised fine-tuning).

In:  a model directory and instruction data in any of the formats of docs/reference/data.md.
Out: a model directory with the chat template, metrics.jsonl.

    wukong sft --model runs/mine/base --data instructions.jsonl --out runs/mine/sft

Step 1 of InstructGPT (Ouyang et al. 2022): the language-model loss on the assistant's tokens only, the closing
<|endoftext|> of each answer included. Several short examples share a row; tokens attend only within their example.

Shape legend: B rows, T time, C channels, N response positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field

from wukong import require
from wukong.console import console, say
from wukong.data.batches import Example, epoch_batch, pack
from wukong.data.instructions import INSTRUCTIONS, load_instructions
from wukong.data.sources import DataOptions
from wukong.data.split import split_by_prompt
from wukong.data.summary import ReadSummary
from wukong.errors import UsageError
from wukong.language import counted
from wukong.model.adapters import base_name
from wukong.model.hub import load_policy, recommended_sampling, save_policy
from wukong.model.language_model import LanguageModel
from wukong.model.logprobs import token_logprobs
from wukong.processes import all_reduce_sum, is_first, local_part
from wukong.records import Conversation
from wukong.require import Need
from wukong.sampling import RecommendOptions
from wukong.scoring import kl_to_start
from wukong.tokenizer import Tokenizer
from wukong.training.advice import say_distance, warn_of_few_steps
from wukong.training.compute import Compute, read
from wukong.training.memory import TrainedPart, Workload, step_tokens
from wukong.training.parallel import full_module, lockstep
from wukong.training.passes import Usual
from wukong.training.session import Session, TrainOptions
from wukong.training.tuning import DropoutTuningOptions, as_loaded, trained_part, tuned


class SFTOptions(TrainOptions, DataOptions, DropoutTuningOptions, RecommendOptions):
    """Fine-tune a model on demonstrations."""

    model: str
    """The base model: a directory or hub id."""
    data: list[str]
    """Instruction data: paths, globs or Hugging Face data set ids."""
    epochs: float | None = Field(None, gt=0, json_schema_extra={"usual": 3.0})
    """Passes over the data. Default: 3, or up to 8 if that is fewer than 150 steps."""
    batch_size: int | None = Field(None, ge=1, json_schema_extra={"usual": 32})
    """Examples per step. Default: 32, or down to 8 if there are few."""
    lr: float | None = Field(None, gt=0, json_schema_extra={"usual": 3e-4})
    """Peak learning rate. Default: 3e-4, or more for models smaller than GPT-2 if there are few examples."""
    warmup_steps: int = Field(10, ge=0)
    """Steps over which the learning rate rises from 0."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate."""
    valid_fraction: float = Field(0.05, ge=0, lt=1)
    """The fraction of prompts held out for validation."""
    eval_every: int = Field(0, ge=0)
    """Steps between validations; 0 validates at the end only. The best weights are kept."""
    template: str | None = None
    """Chat template (alpaca, plain, or a Jinja file) in place of the model's own."""


USUAL = Usual(epochs=3.0, batch_size=32, lr=3e-4, most_epochs=8.0, small_lr=0.001)


def workload(lengths: Sequence[int], response: float, batch_size: int, part: TrainedPart | None = None) -> Workload:
    """lengths: of the examples; response: the fraction of their tokens that are trained on; part: what is trained of
    the model, if not everything."""
    return Workload(step_tokens(lengths, batch_size), response, part=part)


def examples_of(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, context: int, summary: ReadSummary
) -> list[Example]:
    """Tokenised demonstrations. One longer than the context is truncated, or dropped if no answer is left."""
    examples = []
    for conversation in conversations:
        ids, response = tokenizer.conversation_ids(conversation.messages)
        if len(ids) > context:
            ids, response = ids[:context], response[:context]
            if not any(response[1:]):
                summary.dropped["longer than the context before any answer"] += 1
                continue
            summary.truncated[f"longer than the context of {context} tokens"] += 1
        if not any(response):
            summary.dropped["the template shows no answer as it was written"] += 1
            continue
        examples.append(Example(ids, response))
    return examples


PACKED_ROW = 1024
"""Tokens of a row that several examples share. The mask of attention grows with their square, so a model's context is
not filled where it is longer."""


def response_loss(model: LanguageModel, examples: Sequence[Example], compute: Compute) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood (nats) of the response tokens, and their number."""
    longest = max(len(example.ids) for example in examples)
    packed = pack(examples, min(model.config.n_positions, max(longest, PACKED_ROW)))
    ids, segments = packed.input_ids.to(compute.device), packed.segments.to(compute.device)
    counted = packed.response_mask[:, 1:].to(compute.device)  # (B, T - 1): position t predicts token t + 1
    # A segment's first token would be predicted by another segment, but it is a prompt token and never counted.
    with compute.autocast():
        hidden = model(ids, segments=segments)[:, :-1][counted]  # (N, C)
        logprobs, _ = token_logprobs(hidden, model.output_weight, ids[:, 1:][counted])
    return -logprobs.sum(), len(logprobs)


def needs(options: SFTOptions) -> list[Need]:
    return [
        require.policy(options.model, options.template),
        *require.data(options.data, require.reader(INSTRUCTIONS, options), no=("rankings", "pairs", "responses")),
        require.tuning(options.model, options),
        require.device(options.device),
    ]


def run(options: SFTOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the loss is not finite."""
    work = require.open_stage("sft", options, needs(options))
    if work.done:
        return
    # ------------------------------------------------------------------------------------------- model and data
    model, tokenizer = _start(options)
    sampling = recommended_sampling(options.model).for_training(options.recommended_temperature)
    found = load_instructions(options.data, options)
    sides = split_by_prompt(found.records, options.valid_fraction, options.seed)
    train, valid = (examples_of(side, tokenizer, model.config.n_positions, found.summary) for side in sides)
    console.print(found.summary.table("demonstrations"))
    if not train:
        raise UsageError(f"{options.data[0]}: no demonstration is left to train on")
    passes = USUAL.passes(len(train), model.config.n_embd, options.epochs, options.batch_size, options.lr)
    steps = passes.steps(len(train))
    say(
        "sft: {demonstrations}, {held_out:,} held out, {described}",
        demonstrations=counted(len(train), "{n:,} demonstration", "{n:,} demonstrations"),
        held_out=len(valid),
        described=passes.described(len(train)),
    )
    warn_of_few_steps("sft", steps, "give more demonstrations, or more --epochs")
    lengths, learnt = [len(e.ids) for e in train], sum(sum(e.response) for e in train)
    load = workload(lengths, learnt / sum(lengths), passes.batch_size, trained_part(model.config, options))
    # ---------------------------------------------------------------------------------------------------- loop
    with Session(options, {"model": model}, steps, "sft", workload=load, lr=passes.lr) as session:
        compute = session.compute
        for step in session.steps():
            model.train()
            batch = [train[i] for i in epoch_batch(len(train), step, passes.batch_size, options.seed)]
            n_response = sum(sum(e.response[1:]) for e in batch)
            losses = []
            for part in lockstep(_parts(local_part(batch), session.micro_batch_tokens), model):
                loss, _ = response_loss(model, part, compute)
                session.backward(loss / n_response)
                losses.append(loss.detach())
            norms = session.optimizer_step()
            (total,) = all_reduce_sum(sum(loss / n_response for loss in read(losses)))
            session.log(sum(len(e.ids) for e in batch), loss=total, response_tokens=n_response, **norms)
            if valid and session.due(options.eval_every):
                held_out = _validate(model, valid, session)
                session.log(valid_loss=held_out, valid_perplexity=math.exp(min(held_out, 50)))
                session.keep_best(held_out)
            session.show(loss=total)
        session.restore_best()
    model = as_loaded(full_module(model, "cpu").cpu(), lambda: _start(options)[0])
    if not is_first():
        return
    # ---------------------------------------------------------------------------------------------------- save
    start = load_policy(options.model, template=options.template)[0]
    moved = kl_to_start(model, start, [(e.ids, e.response) for e in valid or train])
    results = {"valid_loss": session.state.get("best_loss"), "kl_to_start": moved, "passes": passes.record(len(train))}
    session.finish(
        work,
        lambda staged: save_policy(
            staged, model, tokenizer, sampling=sampling, base=base_name(options.model, options.out)
        ),
        {**results, "data": found.summary.as_dict()},
    )
    say_distance("sft", moved, "give more --epochs or a higher --lr")
    say("next: wukong chat {out}", out=options.out)


def _start(options: SFTOptions) -> tuple[LanguageModel, Tokenizer]:
    """The model at the start, ready to be trained."""
    model, tokenizer = load_policy(options.model, dropout=options.dropout, template=options.template)
    return tuned(model, options, options.seed), tokenizer


def _parts(batch: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """The batch split into parts of at most max_tokens tokens."""
    parts: list[list[Example]] = []
    room = 0
    for example in batch:
        if not parts or len(example.ids) > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(example)
        room -= len(example.ids)
    return parts


@torch.no_grad()
def _validate(model: LanguageModel, examples: Sequence[Example], session: Session) -> float:
    model.eval()
    parts = lockstep(local_part(_parts(examples, session.micro_batch_tokens)), model)
    found = [response_loss(model, part, session.compute) for part in parts]
    total, count = all_reduce_sum(sum(read([loss for loss, _ in found])), sum(count for _, count in found))
    return total / count
