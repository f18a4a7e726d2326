"""PPO: the known answer of a bandit, the places of score and masks, what stays frozen, and a whole small run."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from wukong.errors import RunError, UsageError
from wukong.files import fingerprint
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel, ValueHead
from wukong.model.hub import load_policy, load_reward, save_policy, save_reward
from wukong.records import Prompt, as_messages, write_records
from wukong.scoring import frozen, response_logprobs, scores_of
from wukong.stages import tokenize
from wukong.stages.online import collect, ppo, rollouts, train, update
from wukong.stages.online.algorithm import Advantages
from wukong.stages.online.ppo import PPOOptions
from wukong.stages.online.rollouts import (
    Episodes,
    RolloutStats,
    TokenisedPrompt,
    ended_no_better,
    final_scores,
    roll_out,
    rollout_stats,
)
from wukong.stages.online.train import Trainer
from wukong.stages.online.update import Update, check_first_ratio
from wukong.stages.tokenize import TokenizeOptions
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute
from wukong.training.metrics import read_metrics
from wukong.training.session import Session

CPU = Compute(torch.device("cpu"), torch.float32)
CONFIG = GPT2Config(vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([], 257, "plain")  # the 256 bytes and the end token


def options(out: Path, **changes) -> PPOOptions:
    defaults = {
        "out": out, "model": "", "reward_model": "", "prompts": ["-"], "tensorboard": False, "max_new_tokens": 8,
        "batch_size": 16, "episodes": 16, "precision": "float32", "lr": 1e-3, "missing_eos_score": None,
    }  # fmt: skip
    return PPOOptions(**{**defaults, **changes})


def gpt2(seed: int, spread: float = 1.0) -> GPT2:
    torch.manual_seed(seed)
    model = GPT2(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread)
    return model


@pytest.mark.slow
def test_ppo_reaches_the_closed_form_solution_of_a_bandit(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """One prompt, one token a response. The best policy under a KL penalty is pi ~ pi_ref exp(r / beta) (e.g. Rafailov
    et al. 2023, eq. 4): here r = 2.5, 2.3, 2.1, 1.9 for four tokens and 0 for the others, beta = 0.5, so with a nearly
    uniform reference the four have weights e^5, e^4.6, e^4.2, e^3.8 beside 253 of weight about 1."""
    policy, reference = gpt2(0), gpt2(0)
    value = ScalarModel(gpt2(1))
    rewards = torch.zeros(257)
    rewards[torch.tensor([65, 66, 67, 68])] = torch.tensor([2.5, 2.3, 2.1, 1.9])
    beta, prompt = 0.5, TokenisedPrompt([], tokenizer.encode("Q"))
    config = options(
        tmp_path, batch_size=512, episodes=512 * 120, max_new_tokens=1, kl_coef=beta, lr=2e-3, value_coef=1.0,
        value_clip_range=10.0, ppo_epochs=4,
    )  # fmt: skip

    def score(episodes: Episodes) -> torch.Tensor:
        return rewards[[s[-1] for s in episodes.sequences]]

    def distribution(model: GPT2) -> torch.Tensor:
        with torch.no_grad():
            return model.logits(model(torch.tensor([prompt.ids])))[0, -1].softmax(-1)

    expected = distribution(reference) * torch.exp(rewards / beta)
    expected /= expected.sum()
    state = {"kl_coef": beta, "first_distinct_2": None}
    with Session(config, {"policy": policy, "value": value}, 120, "bandit", state, lr=config.lr) as session:
        trainer = Trainer(session, config, policy, reference, value, score, tokenizer)
        for _ in session.steps():
            trainer.step([prompt] * 512)
    found = distribution(policy)
    assert (found - expected).abs().sum() / 2 < 0.06  # total variation; 0.8 at the start
    assert (found * (found / expected).log()).sum() < 0.03  # KL in nats
    assert (distribution(reference) - expected).abs().sum() / 2 > 0.5  # the test can fail


@pytest.fixture
def rolled(tokenizer: Tokenizer) -> tuple[GPT2, Episodes, PPOOptions]:
    policy = gpt2(0, spread=3.0)
    config = options(Path("unused"), temperature=0.7)
    prompts = [TokenisedPrompt([], tokenizer.encode(text)) for text in ("a", "bcd", "efghij", "klm")]
    return policy, roll_out(policy, prompts, tokenizer, config, seed=5, compute=CPU), config


def stats(policy: GPT2, reference: GPT2, value: ScalarModel | ValueHead, episodes: Episodes) -> RolloutStats:
    return rollout_stats(policy, reference, value, episodes, [range(len(episodes.prompts))], 0.7, CPU)


def test_recomputed_logprobs_equal_the_samplers_at_the_same_temperature(rolled) -> None:
    policy, episodes, _ = rolled
    found = stats(policy, gpt2(0, 3.0), ScalarModel(gpt2(2)), episodes)
    mask = episodes.mask
    assert torch.allclose(found.logprobs[mask], episodes.sampler_logprobs[mask], atol=1e-5)
    assert torch.equal(found.logprobs, found.reference_logprobs)  # the same weights, the same path
    assert not found.logprobs[~mask].any()


def test_recomputed_logprobs_equal_a_plain_loop_over_unpadded_sequences(rolled) -> None:
    policy, episodes, config = rolled
    value = ScalarModel(gpt2(2))
    found = stats(policy, gpt2(1), value, episodes)
    for row, (ids, start) in enumerate(zip(episodes.sequences, episodes.prompt_lengths, strict=True)):
        with torch.no_grad():
            logprobs = (policy.logits(policy(torch.tensor([ids])))[0] / config.temperature).log_softmax(-1)
            values = value.token_scores(torch.tensor([ids]))[0]
        for t, token in enumerate(ids[start:]):
            assert math.isclose(found.logprobs[row, t], logprobs[start + t - 1, token], abs_tol=1e-5)
            assert math.isclose(found.values[row, t], values[start + t - 1], abs_tol=1e-5)


def test_a_shared_value_model_reads_the_policys_own_states(rolled) -> None:
    policy, episodes, _ = rolled
    head = ValueHead(32)
    nn.init.normal_(head.score.weight)
    found = stats(policy, gpt2(1), head, episodes)
    for row, (ids, start) in enumerate(zip(episodes.sequences, episodes.prompt_lengths, strict=True)):
        with torch.no_grad():
            values = policy(torch.tensor([ids]))[0] @ head.score.weight[0]
        for t in range(len(ids) - start):
            assert math.isclose(found.values[row, t], values[start + t - 1], abs_tol=1e-4)


def test_a_shared_trunk_learns_from_both_losses(tmp_path: Path, rolled) -> None:
    """The gradient of an update is that of policy loss + c x value loss, written down over unpadded sequences."""
    policy, episodes, config = rolled
    head = ValueHead(32)
    nn.init.normal_(head.score.weight, std=0.1)
    config = config.model_copy(update={"out": tmp_path, "value_model": "shared", "value_coef": 0.5, "ppo_epochs": 1})
    read = stats(policy, gpt2(1), head, episodes)
    advantages, returns = (torch.randn(episodes.mask.shape) * episodes.mask for _ in range(2))
    loss, n_tokens = torch.zeros(()), int(episodes.mask.sum())
    for row, (ids, start) in enumerate(zip(episodes.sequences, episodes.prompt_lengths, strict=True)):
        states = policy(torch.tensor([ids]))[0, start - 1 : -1]
        n = len(states)
        logprobs = (policy.logits(states) / 0.7).log_softmax(-1)[torch.arange(n), torch.tensor(ids[start:])]
        # At the first update the ratio is 1 and no value is clipped: the policy's loss has the gradient of -A log pi.
        loss = loss - (advantages[row, :n] * logprobs).sum()
        loss = loss + 0.5 * 0.5 * (head.read(states) - returns[row, :n]).square().sum()
    modules = nn.ModuleDict({"policy": policy, "value": head})
    expected = torch.autograd.grad(loss / n_tokens, list(modules.parameters()))
    found = {}

    def look(self) -> dict[str, float]:
        found["gradients"] = [p.grad.clone() for p in modules.parameters()]
        return {}

    state = {"kl_coef": 0.1, "first_distinct_2": None}
    with Session(config, dict(modules), 1, "t", state, lr=1e-3) as session, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "optimizer_step", look)
        learnt = Advantages(advantages, returns)
        Update(session, config.algorithm(), config, policy, head, episodes, read, learnt).run()
    for gradient, right in zip(found["gradients"], expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_model_says_the_same_bit_for_bit(dtype: torch.dtype) -> None:
    compute, ids = Compute(torch.device("cpu"), dtype), torch.randint(257, (3, 20))
    predicts = torch.ones(3, 19, dtype=torch.bool)
    with torch.no_grad():
        found = [
            response_logprobs(model, ids, predicts, 0.7, compute, with_entropy=True)
            for model in (gpt2(0, 3.0), frozen(gpt2(0, 3.0), compute))
        ]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_the_reward_model_reads_query_and_response_without_the_end_token(tokenizer: Tokenizer) -> None:
    model = ScalarModel(gpt2(3))
    end = tokenizer.eos_id
    episodes = Episodes(
        [],
        [[1, 2, 3, end], [1, 2, 3, 4]],
        [1, 1],
        [3, 3],
        [3, 4],
        [True, False],
        torch.ones(2, 3).bool(),
        torch.zeros(2, 3),
    )
    scores = torch.tensor(scores_of(model, episodes.scored_sequences, CPU, 64))
    with torch.no_grad():
        assert torch.allclose(scores[0], model(torch.tensor([[1, 2, 3]]), torch.tensor([3]))[0], atol=1e-6)
        assert torch.allclose(scores[1], model(torch.tensor([[1, 2, 3, 4]]), torch.tensor([4]))[0], atol=1e-6)
        assert not torch.allclose(scores[0], model(torch.tensor([[3]]), torch.tensor([1]))[0], atol=1e-4)


def test_a_response_that_never_ended_gets_the_fixed_score() -> None:
    episodes = Episodes([], [], [], [], [], [True, False], torch.zeros(0), torch.zeros(0))
    scores = torch.tensor([2.0, 3.0])
    assert final_scores(scores, episodes, options(Path("x"), missing_eos_score=-1.0)).tolist() == [2.0, -1.0]
    assert final_scores(scores, episodes, options(Path("x"), missing_eos_score=None)).tolist() == [2.0, 3.0]


def test_a_subtracted_penalty_keeps_the_order_whatever_the_scale_of_the_rewards() -> None:
    """Two answers worth -30 (a length penalty), of which one ends: under the fixed score -1 not ending pays by 29."""
    episodes = Episodes([], [], [], [], [], [True, False, False], torch.zeros(0), torch.zeros(0))
    scores = torch.tensor([-30.0, -30.0, 5.0])
    subtracted = PPOOptions(out="x", model="", prompts=["-"], missing_eos_penalty=2.5)
    assert subtracted.missing_eos_score is None
    assert final_scores(scores, episodes, subtracted).tolist() == [-30.0, -32.5, 2.5]
    assert final_scores(scores, episodes, PPOOptions(out="x", model="", prompts=["-"])).tolist() == [-30.0, -1.0, -1.0]


def test_how_many_ended_responses_score_no_more_than_the_fixed_score() -> None:
    episodes = Episodes([], [], [], [], [], [True, True, True, True, False], torch.zeros(0), torch.zeros(0))
    scores = torch.tensor([-2.0, -1.0, -0.9, 3.0, -9.0])
    assert ended_no_better(scores, episodes, options(Path("x"), missing_eos_score=-1.0)) == 0.5
    assert ended_no_better(scores, episodes, options(Path("x"), missing_eos_score=-2.1)) == 0.0
    assert ended_no_better(scores, episodes, options(Path("x"), missing_eos_score=None)) == 0.0


def test_truncation_cuts_what_is_scored_but_not_what_is_trained_on(tokenizer: Tokenizer) -> None:
    policy = gpt2(0)
    with torch.no_grad():
        policy.wte.weight[ord_id(tokenizer, ".")] *= 60  # full stops become common
    config = options(Path("unused"), truncate_at=".", truncate_after=2, missing_eos_score=-1.0, max_new_tokens=32)
    episodes = roll_out(policy, [TokenisedPrompt([], tokenizer.encode("abc"))] * 8, tokenizer, config, 0, CPU)
    stop, cuts = ord_id(tokenizer, "."), 0
    for ids, start, scored, length in zip(
        episodes.sequences, episodes.prompt_lengths, episodes.scored_lengths, episodes.response_lengths, strict=True
    ):
        response = ids[start:]
        assert length == len(response)
        after = [i for i, token in enumerate(response) if token == stop and i >= 2]
        if after:
            assert scored == start + after[0] + 1
            cuts += scored < len(ids)
    assert cuts


def ord_id(tokenizer: Tokenizer, character: str) -> int:
    return tokenizer.encode(character)[0]


def test_the_first_ratio_of_an_iteration_is_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    policy, value = gpt2(0, 3.0), ScalarModel(gpt2(1))
    config = options(tmp_path, micro_batch_tokens=40)  # other micro-batches in judging and in updating
    state = {"kl_coef": 0.1, "first_distinct_2": None}
    with Session(config, {"policy": policy, "value": value}, 1, "t", state, lr=1e-3) as session:
        trainer = Trainer(session, config, policy, gpt2(0, 3.0), value, lambda e: torch.ones(16), tokenizer)
        for _ in session.steps():
            metrics = trainer.step([TokenisedPrompt([], tokenizer.encode("ab"))] * 16)
    assert metrics["first_ratio_error"] < 1e-5
    assert abs(metrics["kl"]) < 1e-4


def test_a_rollout_that_disagrees_with_the_update_is_refused() -> None:
    with pytest.raises(RunError, match="ratio"):
        check_first_ratio(2e-3, CPU)
    check_first_ratio(5e-4, CPU)


# ------------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture
def world(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    (tmp_path / "sft").mkdir()
    (tmp_path / "reward").mkdir()
    save_policy(tmp_path / "sft", gpt2(0), tokenizer)
    save_reward(tmp_path / "reward", ScalarModel(gpt2(1)), tokenizer)
    write_records(tmp_path / "prompts.jsonl", [Prompt(messages=as_messages(f"say {n}")) for n in range(12)])
    return tmp_path


def whole(world: Path, out: str, **changes) -> PPOOptions:
    return options(
        world / out, model=str(world / "sft"), reward_model=str(world / "reward"),
        prompts=[str(world / "prompts.jsonl")], episodes=48, ppo_epochs=2, **changes,
    )  # fmt: skip


def test_a_run_changes_the_policy_and_leaves_reference_and_reward_model_alone(world: Path) -> None:
    before = fingerprint(world / "sft"), fingerprint(world / "reward")
    ppo.run(whole(world, "policy", kl_target=2.0, kl_coef=0.2))
    assert (fingerprint(world / "sft"), fingerprint(world / "reward")) == before
    assert fingerprint(world / "policy" / "model.safetensors") != fingerprint(world / "sft" / "model.safetensors")
    metrics = read_metrics(world / "policy")
    assert [m["step"] for m in metrics] == [1, 2, 3]
    # KL 0 at first, so the controller lowers beta by 20 % x 16/10,000 (rlhf-details 16)
    assert metrics[1]["kl_coef"] == pytest.approx(0.2 * (1 - 0.2 * 16 / 10_000), abs=1e-6)


def test_a_policy_with_a_shared_value_model_resumes_bit_for_bit(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ppo.run(whole(world, "once", value_model="shared"))
    monkeypatch.setattr(Trainer, "step", dies_at(3, Trainer.step))
    with pytest.raises(KeyboardInterrupt):
        ppo.run(whole(world, "twice", value_model="shared", checkpoint_seconds=0))
    monkeypatch.undo()
    ppo.run(whole(world, "twice", value_model="shared", checkpoint_seconds=0))
    once, twice = (world / out / "model.safetensors" for out in ("once", "twice"))
    assert fingerprint(once) == fingerprint(twice)
    metrics = read_metrics(world / "once")
    assert metrics[0]["value_mean"] == 0  # a new head
    assert metrics[2]["value_mean"] != 0  # has learnt
    assert load_policy(world / "once")[0].n_parameters() == gpt2(0).n_parameters()


def first_ratio_off(world: Path, monkeypatch: pytest.MonkeyPatch, off: list[float], **changes) -> tuple[float, float]:
    """Runs one iteration in minibatches of 4 responses, a micro-batch each; those of the first minibatch compute ratios
    that are off 1 by so much. (what the run says of the first ratio, what it should say)"""
    shifts, sizes, read = iter(off), [], update.read_responses

    def shifted(*arguments):
        logprobs, *rest = read(*arguments)
        if (shift := next(shifts, None)) is None:
            return logprobs, *rest
        sizes.append(len(logprobs))
        return logprobs + math.log1p(shift), *rest

    monkeypatch.setattr(update, "read_responses", shifted)
    one = whole(world, "policy", minibatch_size=4, micro_batch_tokens=16, **changes)
    ppo.run(one.model_copy(update={"episodes": 16}))
    assert len(sizes) == 4
    expected = sum(shift * n for shift, n in zip(off, sizes, strict=True)) / sum(sizes)
    return read_metrics(world / "policy")[0]["first_ratio_error"], expected


@pytest.mark.parametrize("off", [[0.0] * 4, [0.03] * 4, [0.12, 0.0, 0.0, 0.0]], ids=["none", "all", "one"])
def test_minibatches_in_bfloat16_may_disagree_a_little_on_average(world: Path, monkeypatch, off: list[float]) -> None:
    found, expected = first_ratio_off(world, monkeypatch, off, precision="bfloat16")
    assert found == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("precision", "off"), [("bfloat16", 0.1), ("float32", 0.03)])
def test_minibatches_that_disagree_more_than_rounding_explains_are_refused(
    world: Path, monkeypatch: pytest.MonkeyPatch, precision: str, off: float
) -> None:
    with pytest.raises(RunError, match=rf"off 1 by {off:g} on average"):
        first_ratio_off(world, monkeypatch, [off] * 4, precision=precision)
    assert not (world / "policy" / "model.safetensors").exists()


def test_frozen_models_get_no_gradient(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, step = [], Trainer.step

    def spy(trainer, prompts):
        seen.append(trainer.reference)
        return step(trainer, prompts)

    monkeypatch.setattr(Trainer, "step", spy)
    ppo.run(whole(world, "policy"))
    reference = seen[0]
    start, _ = load_policy(world / "sft")
    assert not reference.training
    assert all(p.grad is None and not p.requires_grad for p in reference.parameters())
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), start.parameters(), strict=True))


def test_the_value_model_starts_as_the_reward_model_and_shares_nothing(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def look(trainer, prompts):
        seen["policy"], seen["value"] = trainer.policy, trainer.value_model
        seen["values"] = [p.detach().clone() for p in trainer.value_model.parameters()]
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", look)
    with pytest.raises(KeyboardInterrupt):
        ppo.run(whole(world, "policy"))
    start, _ = load_reward(world / "reward")
    assert all(torch.equal(a, b) for a, b in zip(seen["values"], start.parameters(), strict=True))
    addresses = {p.data_ptr() for p in seen["policy"].parameters()}
    assert not addresses & {p.data_ptr() for p in seen["value"].parameters()}


def test_every_epoch_visits_every_episode_once_in_an_order_of_its_own(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited: list[list[int]] = []
    updates = 0
    original, step = update.padded_rows, Session.optimizer_step

    def spy(episodes, rows, compute):
        visited.append(list(rows))
        return original(episodes, rows, compute)

    def count(self):
        nonlocal updates
        updates += 1
        return step(self)

    monkeypatch.setattr(update, "padded_rows", spy)
    monkeypatch.setattr(Session, "optimizer_step", count)
    ppo.run(whole(world, "policy", minibatch_size=4).model_copy(update={"episodes": 16, "ppo_epochs": 3}))
    assert updates == 3 * 16 // 4
    flat = [row for rows in visited for row in rows]
    epochs = [flat[i : i + 16] for i in (0, 16, 32)]
    assert len(flat) == 48
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_rollouts_are_sampled_without_truncation(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    original = rollouts.generate
    monkeypatch.setattr(rollouts, "generate", lambda *a, **k: (called.append(k), original(*a, **k))[1])
    ppo.run(whole(world, "policy"))
    defaults = inspect.signature(original).parameters
    assert called
    assert (defaults["top_k"].default, defaults["top_p"].default) == (0, 1.0)
    assert not any({"top_k", "top_p"} & set(keywords) for keywords in called)


def test_ptx_loss_is_added_and_logged(world: Path, tokenizer: Tokenizer) -> None:
    (world / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    tokenizer.save(world / "sft")
    text, out = [str(world / "text.txt")], world / "shards"
    tokenize.run(TokenizeOptions(data=text, valid_data=text, tokenizer=str(world / "sft"), template="plain", out=out))
    ppo.run(whole(world, "without"))
    ppo.run(whole(world, "with", ptx_data=str(world / "shards"), ptx_coef=5.0, lr=3e-3))
    losses = [m["ptx_loss"] for m in read_metrics(world / "with")]
    assert losses[0] == pytest.approx(math.log(257), abs=0.2)  # an untrained model: uniform
    assert losses[-1] < losses[0] - 0.3  # and learnt
    assert not any("ptx_loss" in m for m in read_metrics(world / "without"))


def dies_at(call: int, function: Callable) -> Callable:
    """The function, which at its nth call is interrupted instead."""
    calls = 0

    def dies(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return function(*arguments, **keywords)

    return dies


def test_resumed_run_equals_uninterrupted_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ppo.run(whole(world, "once"))
    monkeypatch.setattr(Trainer, "step", dies_at(3, Trainer.step))
    with pytest.raises(KeyboardInterrupt):
        ppo.run(whole(world, "twice", checkpoint_seconds=0))
    monkeypatch.undo()
    ppo.run(whole(world, "twice", checkpoint_seconds=0))
    assert fingerprint(world / "once" / "model.safetensors") == fingerprint(world / "twice" / "model.safetensors")
    deterministic = [{k: v for k, v in m.items() if "second" not in k} for m in read_metrics(world / "once")]
    assert deterministic == [{k: v for k, v in m.items() if "second" not in k} for m in read_metrics(world / "twice")]


def test_runaway_kl_stops_the_run_and_keeps_the_checkpoint(world: Path) -> None:
    with pytest.raises(RunError, match=r"--max-kl.*checkpoint .*step-\d+ is kept"):
        ppo.run(whole(world, "policy", lr=0.05, max_kl=1.0, checkpoint_seconds=0))


def test_a_collapse_stops_the_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = collect.roll_out

    def same(policy, prompts, tokenizer, config, seed, compute):
        return original(
            policy,
            [prompts[0]] * len(prompts),
            tokenizer,
            config.model_copy(update={"temperature": 1e-4}),
            seed,
            compute,
        )

    monkeypatch.setattr(collect, "roll_out", same)
    monkeypatch.setattr(update, "FIRST_RATIO_TOLERANCE", 1e9)
    with pytest.raises(RunError, match="most prompts get the same response"):
        ppo.run(whole(world, "policy"))


def test_a_collapse_of_distinct_2_stops_the_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.8, 0.21, 0.19])  # a quarter of the first is 0.2
    monkeypatch.setattr(train, "distinct_n", lambda responses, n: next(values))
    with pytest.raises(RunError, match=r"iteration 3.*repeat themselves"):
        ppo.run(whole(world, "policy"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 15}, "not a multiple"),
        ({"minibatch_size": 5}, "does not divide"),
        ({"ptx_coef": 1.0}, "--ptx-data"),
        ({"truncate_at": "."}, "--missing-eos-score"),
        ({"missing_eos_score": -1.0, "missing_eos_penalty": 1.0}, "exclude each other"),
        ({"kl_coef": 0.0, "kl_target": 6.0}, "--kl-coef above 0"),
        ({"max_new_tokens": 64}, "leaves no room"),
        ({"max_new_tokens": 62}, "no prompt leaves room"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(world: Path, changes: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ppo.run(whole(world, "policy", **changes))
    assert not (world / "policy" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "no_better"), [({"missing_eos_score": -1.0}, 1.0), ({"missing_eos_penalty": 1.0}, 0.0)]
)
def test_a_fixed_score_above_those_of_ended_responses_is_warned_of_once(
    world: Path, capsys: pytest.CaptureFixture, changes: dict, no_better: float
) -> None:
    """A length penalty of 10 a token puts every response below -1; some of them end."""
    few = whole(world, "policy", **changes)
    ppo.run(few.model_copy(update={"length_penalty": 10.0, "max_new_tokens": 24, "batch_size": 64, "episodes": 128}))
    assert capsys.readouterr().err.count("100% of those that end score no more (the lowest -") == no_better
    metrics = read_metrics(world / "policy")
    assert [m["ended_no_better"] for m in metrics] == [no_better] * 2
    assert all(0 < m["termination_rate"] < 1 for m in metrics)
