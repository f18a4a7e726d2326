"""The sampler: exact draws, and responses that depend on prompt, model and seed alone."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from scipy import stats

from tests.reference import sampling as reference
from wukong import rollout
from wukong.errors import UsageError
from wukong.model.config import LlamaConfig
from wukong.model.cpu import kernels
from wukong.model.cpu.native import NativeModel
from wukong.model.cpu.packed import PackedGPT2, can_pack
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.language_model import LanguageModel
from wukong.model.llama import Llama
from wukong.model.logprobs import token_logprobs
from wukong.rollout import Continuation, Decoder, draw, generate, inference_copy, stream, truncate, uniforms
from wukong.training.compute import Compute

EOS = 11
CPU = torch.device("cpu")
NO_KERNELS = "our kernels need Linux, a C++ compiler and AVX2"


def few_tokens() -> GPT2:
    """So few tokens that the end token comes often: responses of one batch end at many different lengths."""
    torch.manual_seed(0)
    gpt2 = GPT2(GPT2Config(vocab_size=12, n_positions=40, n_embd=32, n_layer=2, n_head=2)).eval()
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        gpt2.ln_f.weight.fill_(0.6)  # not too sure of itself
    return gpt2


def llama_of_few_tokens() -> Llama:
    torch.manual_seed(0)
    sizes = {"n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "head_width": 8, "n_inner": 64}
    llama = Llama(LlamaConfig(vocab_size=12, **sizes, tied=False)).eval()
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        llama.norm.weight.fill_(0.6)
    return llama


@pytest.fixture(params=["PyTorch's kernels", "our kernels", "a Llama"])
def model(request) -> Iterator[LanguageModel]:
    gpt2 = few_tokens()
    if request.param == "a Llama":
        with kernels.using(None):
            yield llama_of_few_tokens()
    elif request.param == "our kernels":
        if kernels.library() is None:
            pytest.skip(NO_KERNELS)
        yield NativeModel(gpt2, torch.float32)
    else:
        with kernels.using(None):
            yield gpt2


class Count:
    """Within a block, counts the positions that a model computes (rows times columns of what it reads) and keeps the
    caches that it is given."""

    def __init__(self, model: GPT2) -> None:
        self.model, self.prompts, self.steps, self.caches = model, [], [], []

    def __enter__(self) -> Self:
        self.hook = self.model.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _note(self, _: GPT2, arguments: tuple[torch.Tensor], named: dict[str, Any]) -> None:
        (ids,) = arguments
        (self.steps if ids.shape[1] == 1 else self.prompts).append(ids.numel())
        self.caches.append(named["cache"])


PROMPTS = [[(7 * i + j) % 11 for j in range(1 + 5 * i % 13)] for i in range(17)]
SEEDS = [100 + i for i in range(len(PROMPTS))]


def sample(model, prompts=PROMPTS, seeds=SEEDS, max_new_tokens=20, **options):
    return generate(model, prompts, eos_id=EOS, max_new_tokens=max_new_tokens, seeds=seeds, **options)


def next_logits(model):
    return lambda ids: model.logits(model(torch.tensor([ids]))[0, -1]).tolist()


# ------------------------------------------------------------------------------------------------- the random draw


def assert_distributed_as(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    """Pearson's chi-square test; rare tokens share a bin, as each needs at least ten expected draws."""
    probabilities = probabilities.astype(np.float64)
    expected = len(tokens) * probabilities / probabilities.sum()
    observed = np.bincount(tokens, minlength=len(probabilities))
    assert observed[probabilities == 0].sum() == 0, "a token without probability was drawn"
    rare = expected < 10
    bins = [(observed[~rare], expected[~rare]), (observed[rare].sum(keepdims=True), expected[rare].sum(keepdims=True))]
    observed, expected = (np.concatenate(side) for side in zip(*bins, strict=True))
    some = expected > 0
    assert some.sum() > 20
    assert stats.chisquare(observed[some], expected[some]).pvalue > 1e-3


def zipf(size: int, seed: int = 0) -> np.ndarray:
    """Probabilities as a vocabulary has them: a few large, many small, in no order."""
    return np.random.default_rng(seed).permutation(1 / np.arange(1, size + 1)).astype(np.float32)


def draws(probabilities: np.ndarray, count: int) -> np.ndarray:
    u = torch.from_numpy(uniforms(5, count))
    rows = torch.from_numpy(probabilities).expand(1000, -1)
    return torch.cat([draw(rows, u[i : i + 1000]) for i in range(0, count, 1000)]).numpy()


def test_draws_follow_a_large_vocabulary():
    assert_distributed_as(draws(zipf(5000), 30_000), zipf(5000))  # 5000 is not a multiple of the block of 64


def test_draws_follow_probabilities_with_holes():
    probabilities = zipf(1000)
    probabilities[:130] = 0  # whole blocks at the start, a half one,
    probabilities[300:330] = 0  # some inside a block,
    probabilities[900:] = 0  # the end
    probabilities[500::2] = 0
    assert_distributed_as(draws(probabilities, 30_000), probabilities)


@pytest.mark.parametrize(("top_k", "top_p"), [(50, 1.0), (0, 0.8), (200, 0.9)])
def test_draws_follow_truncated_probabilities(top_k, top_p):
    logits = torch.from_numpy(zipf(1000)).log()
    kept = truncate(logits.unsqueeze(0), top_k, top_p)[0].exp().numpy()
    allowed = reference.kept_tokens(logits.tolist(), top_k, top_p)
    assert set(np.flatnonzero(kept)) == allowed
    assert_distributed_as(draws(kept, 30_000), np.where(kept > 0, zipf(1000), 0))


def test_each_row_draws_from_its_own_distribution_by_its_own_number():
    generator = np.random.default_rng(0)
    probabilities = generator.random((200, 300), dtype=np.float32) ** 8
    u = generator.random(200, dtype=np.float32)
    found = draw(torch.from_numpy(probabilities), torch.from_numpy(u))
    assert found.tolist() == [reference.inverse_cdf(*row) for row in zip(probabilities, u, strict=True)]


@pytest.mark.parametrize("size", [1, 63, 64, 65, 700])
@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24, 1.0])
def test_the_ends_of_the_unit_interval_draw_tokens_that_have_a_probability(size, u):
    """1.0 stands for a product that rounding has carried over the last sum, as can happen on a GPU."""
    certain = torch.zeros(size, size)
    certain.fill_diagonal_(0.1)  # row i: token i and no other
    assert torch.equal(draw(certain, torch.full((size,), u)), torch.arange(size))
    some = torch.zeros(1, 700)
    some[0, [70, 400, 410]] = torch.tensor([0.2, 0.7, 0.1])
    assert draw(some, torch.tensor([u])).item() == {0.0: 70, 0.5: 400}.get(u, 410)


@pytest.mark.parametrize("top_k", [0, 1, 3, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.99, 0.6, 0.1, 1e-9, 0.0])
def test_truncation_keeps_what_a_plain_loop_keeps(top_k, top_p):
    logits = 2 * torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    if top_p == 1:  # tied tokens share the fate of the k-th; which of them the nucleus takes in is open
        logits[0] = 0.0
        logits[1, 3:6] = logits[1].max()
    for row, kept in zip(logits, truncate(logits, top_k, top_p), strict=True):
        stay = kept.isfinite()
        assert set(stay.nonzero().flatten().tolist()) == reference.kept_tokens(row.tolist(), top_k, top_p)
        assert torch.equal(kept[stay], row[stay])


def test_random_numbers_depend_on_the_seed_alone():
    assert np.array_equal(uniforms(3, 8), uniforms(3, 20)[:8])
    assert not np.array_equal(uniforms(3, 8), uniforms(4, 8))
    assert uniforms(3, 10_000).min() >= 0
    assert uniforms(3, 10_000).max() < 1


# --------------------------------------------------------------------------------------------------- whole responses


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7}, {"temperature": 0}, {"top_k": 3}, {"temperature": 1.3, "top_p": 0.6}],
    ids=["plain", "temperature", "greedy", "top-k", "top-p"],
)
def test_responses_equal_a_plain_loop_that_reads_the_whole_text_at_every_token(model, options):
    found = sample(model, **options)
    lengths = [len(one.ids) for one in found]
    assert len(set(lengths)) > 3 or options.get("temperature") == 0, "these should end at different times"
    for one, prompt, seed in zip(found, PROMPTS, SEEDS, strict=True):
        ids, logprobs = reference.continuation(next_logits(model), prompt, uniforms(seed, 20), EOS, **options)
        assert one.ids == ids
        assert one.logprobs == pytest.approx(logprobs, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_samplers_logprobs_equal_those_recomputed_for_training(model, temperature):
    for one, prompt in zip(sample(model, temperature=temperature, top_k=5), PROMPTS, strict=True):
        ids = torch.tensor(prompt + one.ids)
        hidden = model(ids[None])[0, len(prompt) - 1 : -1]  # (R, C)
        again, _ = token_logprobs(hidden, model.output_weight, ids[len(prompt) :], temperature=temperature)
        torch.testing.assert_close(torch.tensor(one.logprobs), again, rtol=1e-5, atol=1e-5)


def test_greedy_takes_the_likeliest_token(model):
    for one, prompt in zip(sample(model, temperature=0), PROMPTS, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 20 and ids[-1] != EOS:
            ids.append(int(model.logits(model(torch.tensor([ids]))[0, -1]).argmax()))
        assert one.ids == ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_response_does_not_depend_on_its_batch(model, batch_size):
    expected = sample(model)
    assert sample(model, batch_size=batch_size) == [pytest_approx(one) for one in expected]
    backwards = sample(model, prompts=PROMPTS[::-1], seeds=SEEDS[::-1])
    assert [one.ids for one in backwards[::-1]] == [one.ids for one in expected]
    alone = sample(model, prompts=PROMPTS[4:5], seeds=SEEDS[4:5])
    assert alone[0].ids == expected[4].ids


def pytest_approx(one: rollout.Sampled) -> rollout.Sampled:
    return rollout.Sampled(one.ids, pytest.approx(one.logprobs, abs=1e-5), one.finished)  # type: ignore[arg-type]


def test_another_seed_gives_another_response(model):
    assert [one.ids for one in sample(model)] != [one.ids for one in sample(model, seeds=[s + 1 for s in SEEDS])]


def test_streamed_tokens_are_those_of_generate(model):
    for one, prompt, seed in list(zip(sample(model), PROMPTS, SEEDS, strict=True))[:4]:
        assert list(stream(model, prompt, eos_id=EOS, max_new_tokens=20, seed=seed)) == one.ids


def test_finished_rows_that_leave_the_batch_change_nothing(model, monkeypatch):
    results = {}
    for below in (0.0, 0.75, 2.0):  # never, as shipped, after every step
        monkeypatch.setattr(rollout, "COMPACT_BELOW", below)
        with Count(model) as count:
            results[below] = sample(model)
        if below == 0:
            assert set(count.steps) == {len(PROMPTS)}
        else:
            assert count.steps == sorted(count.steps, reverse=True)
            assert count.steps[0] > count.steps[-1]
    assert results[0.75] == [pytest_approx(one) for one in results[0.0]]
    assert results[2.0] == [pytest_approx(one) for one in results[0.0]]


def test_a_cache_of_fewer_rows_knows_its_new_maximum(model):
    cache = model.empty_cache(3, 12)
    model(torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [1, 2, 3, 0, 0]]), cache=cache)
    cache.advance(torch.tensor([5, 2, 3]), 5)
    fewer = cache.select(torch.tensor([1, 2]))
    assert fewer.longest == 3
    assert fewer.lengths.tolist() == [2, 3]
    model(torch.tensor([[1], [2]]), cache=fewer)
    fewer.advance()
    assert fewer.longest == 4
    assert cache.longest == 5


def test_a_response_ends_with_the_end_token_or_at_its_limit(model):
    found = sample(model)
    assert {one.finished for one in found} == {True, False}
    for one in found:
        assert EOS not in one.ids[:-1]
        assert (one.ids[-1] == EOS) == one.finished
        assert len(one.logprobs) == len(one.ids)
        assert one.finished or len(one.ids) == 20


def test_every_response_is_reported_once(model):
    reported = []
    found = sample(model, batch_size=4, on_finish=reported.append)
    assert sum(reported) == len(found)
    assert len(reported) > 5, "they should be reported as they end, not all at the end"


def test_prompt_and_response_may_fill_the_context_to_the_last_token(model):
    one = sample(model, prompts=[[1] * 35], seeds=[2], max_new_tokens=5, temperature=0)[0]
    assert len(one.ids) == 5 or one.finished
    with pytest.raises(
        UsageError, match="prompt of 36 tokens with --max-new-tokens 5 does not fit the model's context of 40"
    ):
        sample(model, prompts=[[1], [1] * 36], seeds=[1, 2], max_new_tokens=5)


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(UsageError, match="an empty prompt cannot be continued"):
        sample(model, prompts=[[1], []], seeds=[1, 2])


def test_nothing_to_do_is_done(model):
    assert sample(model, prompts=[], seeds=[]) == []
    assert sample(model, prompts=[[1]], seeds=[1], max_new_tokens=0) == [rollout.Sampled()]


@pytest.fixture(scope="module")
def wide() -> GPT2:
    """More tokens than a block of the draw holds, and not a multiple of it; some likely, most not."""
    torch.manual_seed(1)
    gpt2 = GPT2(GPT2Config(vocab_size=300, n_positions=16, n_embd=32, n_layer=2, n_head=2)).eval()
    with torch.no_grad():
        gpt2.wte.weight.mul_(15)
        gpt2.ln_f.weight.fill_(0.5)
    return gpt2


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_and_second_tokens_follow_the_models_probabilities(wide, temperature):
    """The second one, which comes through the cache, whatever the first was."""
    prompt, count = [7, 3, 250], 6000
    found = generate(
        wide, [prompt] * count, eos_id=-1, max_new_tokens=2, seeds=range(count), temperature=temperature, batch_size=999
    )
    first = torch.tensor(next_logits(wide)(prompt)).div(temperature).softmax(-1)  # (V,)
    longer = torch.tensor([[*prompt, token] for token in range(300)])
    second = wide.logits(wide(longer)[:, -1]).div(temperature).softmax(-1)  # (V, V): of the second, given the first
    assert_distributed_as(np.array([one.ids[0] for one in found]), first.numpy())
    assert_distributed_as(np.array([one.ids[1] for one in found]), (first @ second).numpy())


def test_waiting_prompts_enter_as_others_end(model):
    """Cost follows real tokens: not the longest answer of each batch."""
    prompts = [[1 + i % 9, 2, 3] for i in range(400)]
    with Count(model) as count:
        found = sample(model, prompts=prompts, seeds=range(400), max_new_tokens=37, batch_size=32)
    lengths = [len(one.ids) for one in found]
    assert max(lengths) > 2.5 * np.mean(lengths), "one by one they end at very different times"
    read = sum(length - one.finished for length, one in zip(lengths, found, strict=True))
    assert read <= sum(count.steps) < 1.35 * read
    in_batches = sum(32 * max(lengths[i : i + 32]) for i in range(0, 400, 32))
    assert sum(count.steps) < 0.6 * in_batches


def test_responses_to_one_prompt_share_its_reading(model):
    prompts = [[i, 2, 3, 4, 5] for i in range(4) for _ in range(6)]
    with Count(model) as count:
        found = sample(model, prompts=prompts, seeds=range(24), batch_size=24)
    assert sum(count.prompts) == 4 * 5
    for i, one in enumerate(found):
        assert one.ids == sample(model, prompts=[prompts[i]], seeds=[i])[0].ids
    assert len({tuple(one.ids) for one in found[:6]}) > 1, "they have seeds of their own"


def test_prompts_of_different_lengths_are_read_with_little_padding(model, monkeypatch):
    monkeypatch.setattr(rollout, "PREFILL_TOKENS", 128)
    prompts = [[i % 11] * (2 + i % 30) + [i // 11] for i in range(120)]
    with Count(model) as count:
        sample(model, prompts=prompts, seeds=range(120), max_new_tokens=2, batch_size=120)
    assert sum(map(len, prompts)) <= sum(count.prompts) < 1.15 * sum(map(len, prompts))


# ------------------------------------------------------------------------------- a batch whose sequences come and go

MANNERS = [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.6}, {"temperature": 1.3, "top_k": 3}]


def continuations(count: int = 40) -> list[Continuation]:
    """Prompts, limits and manners of drawing in many combinations; some fill the context to its last token."""
    return [
        Continuation(PROMPTS[i % 17], (20, 27, 3, 1)[i % 4], seed=i, **MANNERS[i % 5]) for i in range(count)
    ]  # fmt: skip


def alone(model, one: Continuation) -> rollout.Sampled:
    drawing = {"temperature": one.temperature, "top_k": one.top_k, "top_p": one.top_p}
    return sample(model, [one.prompt], [one.seed], one.max_new_tokens, **drawing)[0]


@pytest.mark.parametrize("compact_below", [0.0, 0.75])
@pytest.mark.parametrize(
    "rhythm", [(1, 1), (5, 3), (16, 4), (40, 1)], ids=lambda rhythm: f"{rhythm[0]}-every-{rhythm[1]}"
)
def test_a_sequence_does_not_depend_on_who_comes_and_goes_meanwhile(model, monkeypatch, rhythm, compact_below):
    """`rhythm`: how many join, every how many steps. Every seventh is dropped on its way."""
    monkeypatch.setattr(rollout, "COMPACT_BELOW", compact_below)
    every = continuations()
    waiting, dropped = list(every), [one for i, one in enumerate(every) if i % 7 == 3]
    decoder, most = Decoder(model, EOS), 0
    for step in range(1000):
        if step % rhythm[1] == 0 and waiting:
            joining, waiting = waiting[: rhythm[0]], waiting[rhythm[0] :]
            decoder.admit(joining)
        decoder.drop([one for one in dropped if len(one.written.ids) == 2])
        most = max(most, len(decoder))
        written = {id(one): len(one.written.ids) for one in every}
        stepped = decoder.step()
        assert all(len(one.written.ids) == written[id(one)] + 1 for one in stepped), "one token a step"
        if not waiting and not len(decoder):
            break
    assert len(decoder) == 0
    assert most > 1, "they should have been written together"
    for one in every:
        expected = alone(model, one)
        if one in dropped and len(expected.ids) > 2:
            assert one.written.ids == expected.ids[:2]
        else:
            assert one.written == pytest_approx(expected)


FORMS = ["PyTorch's", "PyTorch's, bfloat16", "packed", "packed, bfloat16", "native", "native, bfloat16"]


@pytest.mark.parametrize("form", FORMS)
def test_random_arrivals_at_three_quarters_occupancy_and_more_change_no_response(form):
    """Newcomers take the lowest vacant rows, so that the highest stay vacant for longer than any sequence lasts."""
    model, random = form_of(few_tokens(), form), np.random.default_rng(0)
    decoder, every = Decoder(model, eos_id=-1), list[Continuation]()
    for step in range(150):
        wanted = 20 if step == 0 else int(random.integers(15, 20))
        new = [
            Continuation(PROMPTS[int(random.integers(17))], int(random.integers(1, 28)), seed=len(every) + i)
            for i in range(wanted - len(decoder))
        ]
        every += new
        decoder.admit(new)
        decoder.step()
    assert len(every) > 150
    tolerance = 0.1 if "bfloat16" in form else 1e-5
    for one in every[::4]:
        ids = torch.tensor([[*one.prompt, *one.written.ids]])
        with torch.no_grad():
            expected = model.logits(model(ids)[0, len(one.prompt) - 1 : -1]).double().log_softmax(-1)
        drawn = torch.tensor(one.written.ids)[:, None]
        found = torch.tensor(one.written.logprobs, dtype=torch.float64)
        torch.testing.assert_close(found, expected.gather(1, drawn)[:, 0], rtol=0, atol=tolerance)
        behind, u = expected.exp().cumsum(1).gather(1, drawn)[:, 0], torch.from_numpy(one.noise[: len(drawn)])
        assert (u < behind + tolerance).all()
        assert (u > behind - found.exp() - tolerance).all()


def form_of(gpt2: GPT2, form: str) -> GPT2:
    kind, _, narrow = form.partition(", ")
    if form == "packed, bfloat16" and not can_pack(CPU, torch.bfloat16):
        pytest.skip("needs bfloat16 instructions")
    if kind == "native" and kernels.library() is None:
        pytest.skip(NO_KERNELS)
    dtype = torch.bfloat16 if narrow else torch.float32
    return {"native": NativeModel, "packed": PackedGPT2}.get(kind, lambda gpt2, dtype: gpt2.to(dtype))(gpt2, dtype)


@pytest.mark.slow
@pytest.mark.skipif(kernels.library() is None, reason=NO_KERNELS)
def test_sanitizers_find_nothing_in_kernels_that_serve_random_arrivals():
    script = Path(__file__).parents[1] / "benchmarks" / "stress" / "decoder.py"
    paths = ["--path", "pytorch float32", "native float32", "native bfloat16"]
    done = subprocess.run(
        [sys.executable, script, "--requests", "60", *paths],
        check=False,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "our kernels with address,undefined" in done.stdout
    assert done.stdout.count("60 requests") == 6, "three paths of two families"
    assert done.stdout.count("0 failed, 0 differ") == 6


def test_a_row_that_is_full_takes_no_token(model):
    cache = model.empty_cache(2, 5)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]]), lengths=torch.tensor([4, 3]), cache=cache)
        cache.advance(torch.tensor([4, 3]), 4)
        model(torch.tensor([[1], [2]]), cache=cache)
        cache.advance()
        with pytest.raises(ValueError, match="6 tokens do not fit the cache's 5 slots"):
            model(torch.tensor([[1], [2]]), cache=cache)
        with pytest.raises(ValueError, match="6 tokens do not fit the cache's 5 slots"):
            model(torch.tensor([[1, 2, 3, 4, 5, 6]]), cache=model.empty_cache(1, 5))


def test_newcomers_take_vacant_rows_before_the_cache_grows(model):
    decoder = Decoder(model, EOS)
    long = [one for one in (Continuation([1, 2], 30, seed=i) for i in range(99)) if len(alone(model, one).ids) > 9][:4]
    short = [Continuation([3], 1, seed=i) for i in range(2)]
    decoder.admit([long[0], short[0], long[1], long[2], short[1]])
    decoder.step()
    first, second = (row for row, one in enumerate(decoder._rows) if one is None)
    decoder.admit([Continuation([4, 5, 6], 30, seed=9)])
    assert decoder._rows[first].prompt == [4, 5, 6]
    decoder.admit([long[3]])
    assert decoder._rows[second] is long[3]
    assert len(decoder._rows) == 5


def test_a_sequence_may_need_more_slots_than_those_before_it(model):
    decoder, brief, long = Decoder(model, EOS), Continuation([1], 25, seed=0), Continuation([2] * 30, 10, seed=1)
    decoder.admit([brief])
    decoder.step()
    decoder.admit([long])
    while len(decoder):
        decoder.step()
    assert long.written == pytest_approx(alone(model, long))
    assert brief.written == pytest_approx(alone(model, brief))


def test_the_longest_sequence_leaves_and_a_short_one_goes_on(model):
    """The context is counted by those who are there: 35 tokens that left must not leave too little room for 30."""
    decoder, long = Decoder(model, EOS), Continuation([2] * 35, 5, seed=1)
    never_ends = next(
        one for one in (Continuation([1], 39, seed=s) for s in range(500)) if len(alone(model, one).ids) == 39
    )
    decoder.admit([long, never_ends])
    while len(decoder):
        decoder.step()
    assert never_ends.written == pytest_approx(alone(model, never_ends))


@torch.no_grad()
def test_notes_hold_the_models_own_logprobs_and_the_likeliest_tokens(model):
    asked = [Continuation(PROMPTS[i], 8, seed=i, likeliest=k, **MANNERS[i]) for i, k in enumerate((3, 0, None, 12, 20))]
    decoder = Decoder(model, EOS)
    decoder.admit(asked)
    while len(decoder):
        decoder.step()
    for one in asked:
        if one.likeliest is None:
            assert one.notes == []
            continue
        assert len(one.notes) == len(one.written.ids)
        for i, (drawn, *best) in enumerate(one.notes):
            logits = model.logits(model(torch.tensor([[*one.prompt, *one.written.ids[:i]]]))[0, -1])
            expected = logits.double() - logits.double().logsumexp(0)
            assert drawn[0] == one.written.ids[i]
            assert drawn[1] == pytest.approx(float(expected[drawn[0]]), abs=1e-5)
            ordered = expected.sort(descending=True)
            assert len(best) == min(one.likeliest, 12)
            assert [value for _, value in best] == pytest.approx(ordered.values[: len(best)].tolist(), abs=1e-5)
            assert [token for token, _ in best] == ordered.indices[: len(best)].tolist()


def test_what_does_not_fit_is_refused_and_nobody_of_its_company_admitted(model):
    decoder = Decoder(model, EOS)
    with pytest.raises(UsageError, match="does not fit the model's context of 40"):
        decoder.admit([Continuation([1], 5, seed=0), Continuation([1] * 36, 5, seed=0)])
    assert len(decoder) == 0
    assert decoder.step() == []


# ---------------------------------------------------------------------------------------- the fastest form of a model


@pytest.fixture(params=["PyTorch's kernels", "our kernels"])
def own(request) -> Iterator[bool]:
    """Whether our kernels are to be had; a CPU on which they are not is made up by hiding them."""
    if request.param == "PyTorch's kernels":
        with kernels.using(None):
            yield False
    elif kernels.library() is None:
        pytest.skip(NO_KERNELS)
    else:
        yield True


@pytest.fixture
def plain() -> GPT2:
    return few_tokens()


def test_float32_weights_are_copied_for_our_kernels_alone(plain, own):
    copy = inference_copy(plain, Compute(CPU, torch.float32))
    assert isinstance(copy, NativeModel) if own else copy is plain


@pytest.mark.parametrize("tiles", [False, True])
def test_bfloat16_goes_to_onednn_where_the_processor_multiplies_tiles_or_nothing_else_is_there(
    plain, own, tiles, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    copy = inference_copy(plain, Compute(CPU, torch.bfloat16))
    packs = can_pack(CPU, torch.bfloat16)
    assert isinstance(copy, NativeModel) == (own and not (packs and tiles))
    assert isinstance(copy, PackedGPT2) == (packs and (tiles or not own))
    assert copy is not plain
    assert {p.dtype for p in plain.parameters()} == {torch.float32}


def test_a_head_of_a_width_that_our_kernels_lack_is_left_to_pytorch():
    narrow = GPT2(GPT2Config(vocab_size=12, n_positions=40, n_embd=16, n_layer=1, n_head=2)).eval()
    assert inference_copy(narrow, Compute(CPU, torch.float32)) is narrow


def test_decoding_in_bfloat16_keeps_cache_and_loss(plain, own):
    copy = inference_copy(plain, Compute(CPU, torch.bfloat16))
    assert not copy.training
    if not own:  # ours keeps bfloat16 in its panels, and reads prompts with the model itself
        assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    prompts, seeds = PROMPTS * 12, range(12 * len(PROMPTS))
    with Count(copy) as count:
        found = sample(copy, prompts=prompts, seeds=seeds)
    assert {tensor.dtype for cache in count.caches for tensor in cache.keys + cache.values} == {torch.bfloat16}
    # Compared in loss: the mean log-prob of the tokens drawn, by the sampler and by the float32 model.
    sampled, again = [], []
    for one, prompt in zip(found, prompts, strict=True):
        ids = torch.tensor(prompt + one.ids)
        with torch.no_grad():
            hidden = plain(ids[None])[0, len(prompt) - 1 : -1]
            again += token_logprobs(hidden, plain.wte.weight, ids[len(prompt) :])[0].tolist()
        sampled += one.logprobs
    assert len(again) > 500
    assert np.mean(sampled) == pytest.approx(np.mean(again), abs=5e-3)
    assert np.mean(np.abs(np.array(sampled) - np.array(again))) > 1e-5, "this was not bfloat16"
