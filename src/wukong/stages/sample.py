"""`wukong sample`: prompts + models -> K responses per prompt (responses.jsonl).

In:  prompts in any format; one or more model directories, or any OpenAI-compatible endpoint.
Out: one Response record per line: prompt, text, model, sampling settings.

    wukong sample --models runs/mine/sft --prompts prompts.jsonl --responses-per-prompt 4 --out responses.jsonl

Every (model, temperature) gives `responses_per_prompt` answers to each prompt. Seeds are functions of prompt,
temperature and number, so adding prompts or models changes no existing answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import Field

from wukong import require
from wukong.console import Bar, console, say
from wukong.data.prompts import PROMPTS, PromptOptions, load_prompts
from wukong.data.split import split_by_prompt
from wukong.errors import DataError, Text, UsageError
from wukong.feedback.endpoint import Endpoint
from wukong.feedback.replies import Replies, forget_replies, gather, replies_path
from wukong.language import counted
from wukong.model.hub import load_policy, recommended_sampling
from wukong.options import StageOptions
from wukong.records import Prompt, Response, Sampling, write_records
from wukong.require import Need
from wukong.rollout import generate, inference_copy
from wukong.seeds import derived_seed
from wukong.training.compute import Precision, compute_for


class SampleOptions(StageOptions, PromptOptions):
    """Sample responses to prompts."""

    prompts: list[str]
    """Prompts in any of the formats of docs/reference/data.md."""
    models: list[str] = []
    """Model directories or hub ids."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server to sample from too, e.g. http://127.0.0.1:8000/v1 (key:
    OPENAI_API_KEY)."""
    endpoint_model: str | None = None
    """The model's name on that server."""
    responses_per_prompt: int = Field(4, ge=1, le=100_000)
    """K: answers per prompt, for each model and temperature."""
    temperatures: list[float] = []
    """Sampling temperatures; 0 is greedy. Default: what each model recommends (generation_config.json), else 1."""
    top_k: int | None = Field(None, ge=0)
    """Sample from the k most likely tokens only; 0 is off. Default: as recommended if --temperatures is absent."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the most likely tokens that make up this probability; 1 is off. Default: as for --top-k."""
    max_new_tokens: int = Field(128, ge=1)
    """Maximum response length, in tokens."""
    holdout: float = Field(0.0, ge=0, lt=1)
    """Leave out this fraction of the prompts: those that evaluate uses with the same --holdout and --seed."""
    limit: int | None = Field(None, ge=1)
    """Use only the first N prompts."""
    batch_size: int = Field(128, ge=1)
    """Responses decoded together."""
    precision: Precision = "auto"
    """bfloat16 where it is faster, or as named."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (an Apple GPU)."""

    @classmethod
    def needed(cls, given: Mapping[str, Any]) -> list[str]:
        if given.get("models") or given.get("endpoint"):
            return []
        return [Text("--models (or --endpoint with --endpoint-model)")]


def needs(options: SampleOptions) -> list[Need]:
    if not options.models and not options.endpoint:
        raise UsageError("nothing to sample from: give --models, or --endpoint and --endpoint-model")
    if options.endpoint and options.top_k:
        raise UsageError("--top-k is not part of the OpenAI API: leave it out with --endpoint")
    if bool(options.endpoint) != bool(options.endpoint_model):
        raise UsageError("--endpoint and --endpoint-model go together")
    if any(temperature < 0 for temperature in options.temperatures):
        raise UsageError("--temperatures: none may be below 0")
    return [
        *require.endpoint(options.endpoint, options.endpoint_model),
        *map(require.policy, options.models),
        *(require.room(model, options.max_new_tokens) for model in options.models),
        *require.data(options.prompts, require.reader(PROMPTS, options)),
        require.device(options.device),
    ]


def run(options: SampleOptions) -> None:
    """Raises UsageError or DataError for unusable input, RunError when the endpoint fails."""
    work = require.open_stage("sample", options, needs(options), directory=False)
    if work.done:
        forget_replies(options.out, directory=False)
        return
    read = load_prompts(options.prompts, options)
    console.print(read.summary.table("prompts read"))
    prompts = split_by_prompt(read.records, options.holdout, options.seed)[0][: options.limit]
    endpoint = Endpoint(options.endpoint, str(options.endpoint_model)) if options.endpoint else None
    # The endpoint first: its answers are saved at once, and if it fails, no local work is lost.
    theirs = sample_endpoint(endpoint, prompts, options) if endpoint else []
    responses: list[Response] = []
    for model in options.models:
        responses += sample_model(model, prompts, options)
    responses += theirs
    place = {prompt.id: i for i, prompt in enumerate(prompts)}
    responses.sort(key=lambda r: place[r.prompt_id])  # all answers to a prompt together
    write_records(options.out, responses)
    finished = sum(r.finish_reason == "stop" for r in responses) / len(responses)
    say(
        "sample: {responses}, {finished:.1%} of them ended by the model",
        responses=counted(len(responses), "{n:,} response", "{n:,} responses"),
        finished=finished,
    )
    work.finish({"responses": len(responses), "termination_rate": finished}, [options.out])
    forget_replies(options.out, directory=False)


def sample_model(model_path: str, prompts: Sequence[Prompt], options: SampleOptions) -> Iterator[Response]:
    """The responses of one local model, at every temperature."""
    compute = compute_for(options.precision, options.device)
    policy, tokenizer = load_policy(model_path)
    model = inference_copy(policy.to(compute.device).eval(), compute)
    room = model.config.n_positions - options.max_new_tokens
    if room < 1:
        raise UsageError(f"--max-new-tokens {options.max_new_tokens} does not fit {model_path}'s context")
    ids = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            ids.append(tokenizer.prompt_ids(prompt.messages, max_tokens=room))
        except DataError as error:
            raise DataError(
                f"prompt {number}: {error.problem}",
                file=options.prompts[0],
                hint=f"the context is {model.config.n_positions}; lower --max-new-tokens or shorten it",
            ) from None
    recommended = recommended_sampling(model_path)
    temperatures: Sequence[float | None] = options.temperatures or [None]
    for given in temperatures:
        drawing = recommended.unless_given(model_path, given, options.top_k, options.top_p)
        temperature = drawing.temperature
        say("sample: {model} with {sampling}", model=model_path, sampling=drawing.in_words())
        jobs = list(product(range(len(prompts)), range(options.responses_per_prompt)))
        seeds = [derived_seed(options.seed, prompts[i].id, temperature, k) for i, k in jobs]
        with Bar(Text("sampling {model}", model=model_path), len(jobs), unit="response") as bar:
            answers = generate(
                model,
                [ids[i] for i, _ in jobs],
                eos_id=tokenizer.eos_ids,
                max_new_tokens=options.max_new_tokens,
                seeds=seeds,
                temperature=temperature,
                top_k=drawing.top_k,
                top_p=drawing.top_p,
                batch_size=options.batch_size,
                on_finish=bar.advance,
            )
        for (i, _), seed, answer in zip(jobs, seeds, answers, strict=True):
            sampling = Sampling(**drawing.as_dict(), seed=seed)
            yield Response.of(
                prompts[i], tokenizer.decode(answer.ids), model_path, sampling,
                finished=answer.finished, n_tokens=len(answer.ids),
            )  # fmt: skip


def sample_endpoint(endpoint: Endpoint, prompts: Sequence[Prompt], options: SampleOptions) -> list[Response]:
    """The responses of a model behind an OpenAI-compatible API; each is requested once and saved as it arrives."""
    replies = Replies(replies_path(options.out, directory=False))
    top_p = 1.0 if options.top_p is None else options.top_p
    jobs = []
    for prompt, temperature, k in product(prompts, options.temperatures or [1.0], range(options.responses_per_prompt)):
        seed = derived_seed(options.seed, prompt.id, temperature, k) % 2**31
        request = endpoint.request(
            prompt.messages, temperature=temperature, top_p=top_p, max_tokens=options.max_new_tokens, seed=seed
        )
        jobs.append((prompt, Sampling(temperature=temperature, top_p=top_p, seed=seed), endpoint.key(request), request))
    questions = {key: request for _, _, key, request in jobs}
    with Bar(Text("sampling {model}", model=endpoint.model), len(questions), unit="response") as bar:
        gather(questions, endpoint.reply, replies, endpoint.remote, lambda key: bar.advance())
    found = [(prompt, sampling, replies[key]) for prompt, sampling, key, _ in jobs]
    return [
        Response.of(prompt, reply.text, endpoint.model, sampling, finished=reply.finished, n_tokens=reply.n_tokens)
        for prompt, sampling, reply in found
    ]
