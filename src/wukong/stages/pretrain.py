"""`wukong pretrain`: token shards -> a base model that continues text.

In:  the directory of `wukong tokenize`; a preset's sizes, or a model to continue from.
Out: a Hugging Face-format model directory, metrics.jsonl, samples.jsonl (texts written during training).

    wukong pretrain --data runs/mine/tokenizer --model nano --tokens 2000000 --out runs/mine/base

Language modelling as in GPT-2: contexts are cut from one long sequence of documents separated by <|endoftext|>; no
position is padding. Each epoch cuts at a different offset and shuffles the contexts. Departures from GPT-2: AdamW with
decay on matrices only, a cosine schedule (as in nanoGPT and most since), no dropout by default.

Shape legend: B rows, T context, C channels.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field

from wukong import require
from wukong.console import say
from wukong.data.shards import TokenShards
from wukong.errors import Text, UsageError
from wukong.model.config import ModelConfig
from wukong.model.families import PRESET_CONFIGS, new_model
from wukong.model.hub import load_policy, recommended_sampling, save_policy
from wukong.model.language_model import LanguageModel
from wukong.processes import all_reduce_sum, is_first, local_part, world_size
from wukong.require import Need
from wukong.rollout import generate, inference_copy
from wukong.sampling import OWN_DISTRIBUTION, RecommendOptions
from wukong.scoring import language_model_loss, validation_loss
from wukong.seeds import derived_seed
from wukong.tokenizer import Tokenizer
from wukong.training.advice import warn_of_few_steps
from wukong.training.compiled import Compile, compiled_where_faster
from wukong.training.compute import Compute
from wukong.training.memory import Decoding, Workload
from wukong.training.optimizer import Algorithm, check_optimizer
from wukong.training.parallel import full_module, lockstep
from wukong.training.session import Session, TrainOptions


class PretrainOptions(TrainOptions, RecommendOptions):
    """Train a language model on raw text."""

    data: Path
    """Directory of `wukong tokenize`."""
    model: str = "nano"
    """A preset (GPT-2's architecture: test, nano, micro, mini, gpt2, gpt2-medium, gpt2-large, gpt2-xl; Llama's:
    llama-test, llama-nano, llama-124m), or a model to continue from: a directory or hub id."""
    context: int | None = Field(None, ge=8)
    """Tokens per row. Default: the model's whole context, at most 1,024."""
    tokens: int | None = Field(None, ge=1, json_schema_extra={"usual": 2_000_000})
    """Training tokens, over as many epochs as needed. Default: two million, or 40 epochs if the corpus is smaller
    than that."""
    batch_tokens: int = Field(8192, ge=8)
    """Tokens per step."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate; useful from the second epoch on."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    optimizer: Algorithm = "adamw"
    """adamw, or muon: Muon for the matrices of the blocks and AdamW for the rest; fewer steps to the same loss."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's weight decay, on matrices and embeddings only."""
    warmup_steps: int = Field(20, ge=0)
    """Steps over which the learning rate rises from 0."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """The final learning rate, as a fraction of the peak."""
    compile: Compile = "auto"
    """torch.compile the training pass: on, off, or auto, which measures at the start of a run longer than half an hour
    whether it is faster, and caches the answer."""
    eval_every: int = Field(0, ge=0)
    """Steps between validations; 0 validates at the end only."""
    eval_tokens: int = Field(65536, ge=1)
    """Maximum tokens per validation."""
    sample_prompts: list[str] = ["Once upon a time"]
    """Texts for the model to continue at each validation; results go to samples.jsonl."""


USUAL_CONTEXT = 1024
MOST_EPOCHS = 40
"""Passes over a corpus beyond which more teach nothing (Muennighoff et al. 2023, figure 3)."""
USUAL_TOKENS = 2_000_000


def workload(options: PretrainOptions, config: ModelConfig) -> Workload:
    context = usual_context(options, config.n_positions)
    own_rows = math.ceil(options.batch_tokens // context / world_size())
    rows = min(own_rows, max(1, options.micro_batch_tokens // context))
    n = len(options.sample_prompts)
    decoding = Decoding(config, n, min(config.n_positions, USUAL_CONTEXT)) if n else None
    return Workload(rows * context, one_shape=True, decoding=decoding)


def usual_context(options: PretrainOptions, longest: int) -> int:
    return options.context or min(longest, USUAL_CONTEXT)


def training_tokens(options: PretrainOptions, corpus: int) -> int:
    """The option if given; else the default, limited to `MOST_EPOCHS` passes over a small corpus."""
    return options.tokens or max(options.batch_tokens, min(USUAL_TOKENS, MOST_EPOCHS * corpus))


def needs(options: PretrainOptions) -> list[Need]:
    check_optimizer(options.optimizer, sharded=options.parallel == "fsdp")
    if options.model in PRESET_CONFIGS:
        check_context(options, PRESET_CONFIGS[options.model].n_positions)
        start = []
    else:
        sizes = Need(lambda planned: check_context(options, planned.context_of(options.model)))
        start = [require.policy(options.model), sizes]
    return [require.shards(options.data), *start, require.device(options.device)]


def check_context(options: PretrainOptions, longest: int | None) -> None:
    """Raises UsageError for rows that do not fit a model with a context of `longest` (None: not known yet)."""
    context = options.context if longest is None else usual_context(options, longest)
    if longest is not None and context is not None and context > longest:
        raise UsageError(f"--context {context} is longer than the model's {longest}")
    if context is not None and options.batch_tokens % context:
        raise UsageError(f"--batch-tokens {options.batch_tokens} is not a multiple of the context {context}")


def run(options: PretrainOptions) -> None:
    """Raises UsageError for unusable options or shards, RunError when the loss is not finite."""
    work = require.open_stage("pretrain", options, needs(options))
    if work.done:
        return
    # ------------------------------------------------------------------------------------------- model and data
    torch.manual_seed(derived_seed(options.seed, "initialise"))
    tokenizer = Tokenizer.load(options.data)
    if options.model in PRESET_CONFIGS:
        sizes = replace(PRESET_CONFIGS[options.model], vocab_size=tokenizer.vocab_size, dropout=options.dropout)
        model, sampling = new_model(sizes), OWN_DISTRIBUTION
    else:
        model, own_tokenizer = load_policy(options.model, dropout=options.dropout)
        sampling = recommended_sampling(options.model)
        if own_tokenizer.fingerprint != tokenizer.fingerprint:
            raise UsageError(
                f"{options.data}: made with another tokenizer than {options.model}'s; tokenise it with that"
            )
    check_context(options, model.config.n_positions)
    context = usual_context(options, model.config.n_positions)
    for text in options.sample_prompts:
        if not 0 < len(tokenizer.encode(text)) < model.config.n_positions:
            raise UsageError(f"--sample-prompts {text[:40]!r}: empty, or no shorter than the model's context")
    train, valid = (TokenShards.open(options.data / side, tokenizer) for side in ("train", "valid"))
    if len(train) <= context:
        raise UsageError(f"{options.data}: {len(train)} training tokens are fewer than one context of {context}")
    rows = options.batch_tokens // context
    steps = math.ceil(training_tokens(options, len(train)) / options.batch_tokens)
    say(
        "pretrain: {parameters:,} parameters, {tokens:,} tokens in the corpus, {epochs:.2g} epochs",
        parameters=model.n_parameters(),
        tokens=len(train),
        epochs=steps * options.batch_tokens / len(train),
    )
    warn_of_few_steps("pretrain", steps, "give more --tokens, or fewer --batch-tokens")
    # ---------------------------------------------------------------------------------------------------- loop
    load = workload(options, model.config)
    with Session(
        options, {"model": model}, steps, "pretrain", lr=options.lr, optimizer=options.optimizer, workload=load
    ) as session:
        compute = session.compute
        micro_rows, own_rows = max(1, session.micro_batch_tokens // context), math.ceil(rows / world_size())
        example = torch.zeros(min(own_rows, micro_rows), context + 1, dtype=torch.int64, device=compute.device)
        passes = (steps - session.start) * math.ceil(own_rows / micro_rows)
        fast = compiled_where_faster(session, options.compile, model.train(), language_model_loss, example, passes)
        for step in session.steps():
            model.train()
            ids = local_part(train.batch(step, rows, context, options.seed)).to(compute.device)  # (B, T + 1)
            for part in lockstep(ids.split(micro_rows) if len(ids) else (), model):
                session.backward(language_model_loss(fast, part, compute) / options.batch_tokens)
            norms = session.optimizer_step()
            (total,) = all_reduce_sum(session.loss)
            session.log(options.batch_tokens, loss=total, perplexity=math.exp(min(total, 50)), **norms)
            if session.due(options.eval_every):
                held_out = validation_loss(model, valid, context, options.eval_tokens, compute)
                session.log(
                    valid_loss=held_out,
                    valid_perplexity=math.exp(min(held_out, 50)),
                    valid_bits_per_byte=held_out / math.log(2) / valid.bytes_per_token,
                )
                session.keep_best(held_out)
                _show_samples(session, options, model, tokenizer, compute)
            session.show(loss=total)
        session.restore_best()
    model = full_module(model, "cpu")
    if not is_first():
        return
    # ---------------------------------------------------------------------------------------------------- save
    best, sampling = session.state["best_loss"], sampling.for_training(options.recommended_temperature)
    session.finish(
        work,
        lambda staged: save_policy(staged, model, tokenizer, sampling=sampling),
        {"valid_loss": best, "parameters": model.n_parameters()},
    )
    chance = Text("{loss:.2f} before the first step", loss=math.log(tokenizer.vocab_size))
    begun = chance if options.model in PRESET_CONFIGS else options.model
    say("pretrain: {best:.3f} nats per held-out token ({begun})", best=best, begun=begun)
    say("next: wukong sft --model {out} --data DEMONSTRATIONS --out {out}-sft", out=options.out)


def _show_samples(
    session: Session, options: PretrainOptions, model: LanguageModel, tokenizer: Tokenizer, compute: Compute
) -> None:
    """Continues the sample prompts and writes the texts to samples.jsonl."""
    prompts = [tokenizer.encode(text) for text in options.sample_prompts]
    room = model.config.n_positions - max((len(p) for p in prompts), default=0)
    written = generate(
        inference_copy(model.eval(), compute),
        prompts,
        eos_id=tokenizer.eos_ids,
        max_new_tokens=min(64, room),
        seeds=[derived_seed(options.seed, "sample", i) for i in range(len(prompts))],
    )
    for prompt, sampled in zip(options.sample_prompts, written, strict=True):
        session.sample(prompt=prompt, text=tokenizer.decode(sampled.ids))
