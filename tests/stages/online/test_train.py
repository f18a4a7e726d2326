"""The online algorithms beside PPO: where each one ends on a bandit whose best policy is known, what each makes of
rewards, and whole small runs of the loop they share."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.openai_server import Raw, openai_server
from tests.reference import losses as reference
from tests.stages.tiny_data import stop_after
from wukong.cli import main
from wukong.errors import RunError, UsageError
from wukong.files import fingerprint
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy
from wukong.objectives import sequence_rewards
from wukong.records import Prompt, as_messages, write_records
from wukong.stages import tokenize
from wukong.stages.online import bestofn, collect, grpo, ppo, reinforce, rloo, train, update
from wukong.stages.online.algorithm import Batch, OnlineOptions
from wukong.stages.online.bestofn import BestOfN, BestOfNOptions
from wukong.stages.online.grpo import GRPO, GRPOOptions
from wukong.stages.online.ppo import PPOOptions
from wukong.stages.online.reinforce import Reinforce, ReinforceOptions
from wukong.stages.online.rloo import RLOO, RLOOOptions
from wukong.stages.online.rollouts import Episodes, TokenisedPrompt
from wukong.stages.online.train import Trainer
from wukong.stages.tokenize import TokenizeOptions
from wukong.tokenizer import Tokenizer
from wukong.training.metrics import read_metrics
from wukong.training.session import Session

CONFIG = GPT2Config(vocab_size=257, n_positions=64, n_embd=32, n_layer=1, n_head=2)
FAST = {"tensorboard": False, "precision": "float32", "missing_eos_score": None}


def gpt2(seed: int) -> GPT2:
    torch.manual_seed(seed)
    return GPT2(CONFIG)


# ---------------------------------------------------------------------------------------------------------- bandits


BETA, STEPS, BATCH = 0.5, 100, 512
REWARDS = torch.zeros(257)
REWARDS[torch.tensor([65, 66, 67, 68])] = torch.tensor([2.5, 2.3, 2.1, 1.9])


def distribution(model: GPT2, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(torch.tensor([prompt])))[0, -1].softmax(-1)


@pytest.fixture
def one_prompt(monkeypatch) -> None:
    """Where there is one prompt, the same response to all is no collapse."""
    monkeypatch.setattr(train, "COLLAPSE_SHARE", 1.0)


def trained_on_the_bandit(options: OnlineOptions, tokenizer: Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's and the policy's distribution after STEPS iterations on one prompt, one token a response."""
    policy, fixed = gpt2(0), gpt2(0)
    value = ScalarModel(gpt2(1)) if options.algorithm().value_coef is not None else None
    modules = {"policy": policy} | ({"value": value} if value else {})
    prompt = tokenizer.encode("Q")

    def score(episodes: Episodes) -> torch.Tensor:
        return REWARDS[[s[-1] for s in episodes.sequences]]

    state = {"kl_coef": options.kl_coef, "first_distinct_2": None}
    with Session(options, modules, STEPS, "bandit", state, lr=options.lr) as session:
        trainer = Trainer(session, options, policy, fixed, value, score, tokenizer)
        for _ in session.steps():
            trainer.step([TokenisedPrompt([], prompt)] * BATCH)
    return distribution(fixed, prompt), distribution(policy, prompt)


def bandit(kind: type[OnlineOptions], out: Path, **changes) -> OnlineOptions:
    given = {"out": out, "model": "", "prompts": ["-"], "batch_size": BATCH, "episodes": BATCH * STEPS, "lr": 3e-3}
    given |= {"max_new_tokens": 1, "kl_coef": BETA, "samples_per_prompt": 1 if kind is ReinforceOptions else 8}
    return kind(**(given | FAST | changes))


def total_variation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().sum() / 2)


@pytest.mark.slow
@pytest.mark.usefixtures("one_prompt")
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (ReinforceOptions, {}),
        (ReinforceOptions, {"baseline": "learned", "value_coef": 1.0}),
        (RLOOOptions, {}),
        (GRPOOptions, {"kl_in": "reward", "scale": "none", "average": "constant"}),
    ],
    ids=["running", "learned", "rloo", "dr-grpo"],
)
def test_unbiased_policy_gradients_reach_the_closed_form_solution_of_a_bandit(
    tmp_path: Path, byte_tokenizer: Tokenizer, kind: type[OnlineOptions], changes: dict
) -> None:
    """pi ~ pi_ref exp(r / beta), as in the test of PPO's."""
    fixed, found = trained_on_the_bandit(bandit(kind, tmp_path, **changes), byte_tokenizer)
    expected = fixed * torch.exp(REWARDS / BETA)
    expected /= expected.sum()
    assert total_variation(fixed, expected) > 0.5  # the test can fail
    assert total_variation(found, expected) < 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("one_prompt")
def test_grpo_with_k3_in_the_loss_ends_at_the_bandits_optimum_under_the_other_kl(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    """The gradient of k3 is that of KL(pi_ref || pi). Of E_pi[r] - beta KL(pi_ref || pi) the stationary point is
    r(a) + beta pi_ref(a)/pi(a) = m for all a: pi(a) = beta pi_ref(a)/(m - r(a)), with m such that they add up to 1.
    A group's mean holds the response itself, which makes the reward's gradient (G - 1)/G of what it should be and
    leaves that of the KL alone: beta counts 8/7 times. The end is approached slowly, so the tolerance is wider."""
    options = bandit(GRPOOptions, tmp_path, scale="none")
    fixed, found = trained_on_the_bandit(options, byte_tokenizer)
    beta = BETA * 8 / 7
    low, high = 2.5 + 1e-6, 20.0
    for _ in range(100):  # the sum falls with m
        m = (low + high) / 2
        low, high = (m, high) if (beta * fixed / (m - REWARDS)).sum() > 1 else (low, m)
    expected = beta * fixed / (m - REWARDS)
    usual = fixed * torch.exp(REWARDS / BETA)
    usual /= usual.sum()
    assert total_variation(usual, expected) > 0.4  # the two optima can be told apart
    assert total_variation(found, expected) < 0.15


@pytest.mark.slow
@pytest.mark.usefixtures("one_prompt")
@pytest.mark.parametrize(("kind", "changes"), [(GRPOOptions, {}), (BestOfNOptions, {"kl_coef": 0.1})])
def test_methods_with_other_fixed_points_improve_clearly_on_the_bandit(
    tmp_path: Path, byte_tokenizer: Tokenizer, kind: type[OnlineOptions], changes: dict
) -> None:
    fixed, found = trained_on_the_bandit(bandit(kind, tmp_path, **changes), byte_tokenizer)
    assert (fixed * REWARDS).sum() < 0.1
    assert (found * REWARDS).sum() > 1.5


# ------------------------------------------------------------------------------------------------------- advantages


def batch(scores: list[float], kl: list[list[float]], mask: list[list[bool]], values=None, state=None) -> Batch:
    places = torch.tensor(mask)
    tensor = torch.where(places, torch.tensor(kl), 0)
    return Batch(
        torch.tensor(scores), tensor, places, torch.zeros(tensor.shape) if values is None else torch.tensor(values),
        0.5, {} if state is None else state,
    )  # fmt: skip


TWO = [[True, True], [True, False]]


def test_reinforce_compares_what_is_to_come_with_the_running_mean() -> None:
    # Row 1: rewards -0.5 x 2 = -1 and -0.5 x 4 + 3 = 1: to come 0 and 1. Row 2: -0.5 x 2 + 5 = 4. Mean of the whole
    # rewards: (0 + 4)/2 = 2, which is its own baseline in the first batch.
    made = Reinforce(bandit(ReinforceOptions, Path("x"), baseline_decay=0.75))
    state: dict = {}
    found = made.advantages(batch([3.0, 5.0], [[2.0, 4.0], [2.0, 9.0]], TWO, state=state))
    assert found.advantages.tolist() == [[-2.0, -1.0], [2.0, 0.0]]
    assert found.returns is None
    assert state["baseline"] == 2.0
    found = made.advantages(batch([7.0, 9.0], [[0.0, 0.0], [0.0, 0.0]], TWO, state=state))
    assert found.advantages.tolist() == [[5.0, 5.0], [7.0, 0.0]]  # the old 2 is the baseline, not the new 8
    assert state["baseline"] == 0.75 * 2 + 0.25 * 8


def test_reinforce_with_a_learned_baseline_compares_with_the_values() -> None:
    made = Reinforce(bandit(ReinforceOptions, Path("x"), baseline="learned"))
    found = made.advantages(batch([3.0, 5.0], [[2.0, 4.0], [2.0, 9.0]], TWO, values=[[1.0, 0.5], [-1.0, 7.0]]))
    assert found.advantages.tolist() == [[-1.0, 0.5], [5.0, 0.0]]
    assert found.returns.tolist() == [[0.0, 1.0], [4.0, 0.0]]


def test_rloo_gives_every_token_of_a_response_its_lead_over_the_others() -> None:
    found = RLOO(bandit(RLOOOptions, Path("x"), samples_per_prompt=2)).advantages(
        batch([3.0, 5.0], [[2.0, 4.0], [2.0, 9.0]], TWO)
    )
    assert found.advantages.tolist() == [[-4.0, -4.0], [4.0, 0.0]]  # 3 - 0.5 x 6 = 0 against 5 - 0.5 x 2 = 4


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_grpo_puts_the_kl_into_the_loss_or_into_the_reward_and_never_into_both(kl_in: str) -> None:
    options = bandit(GRPOOptions, Path("x"), samples_per_prompt=2, kl_in=kl_in, scale="none")
    made, given = GRPO(options), batch([3.0, 5.0], [[2.0, 4.0], [2.0, 9.0]], TWO)
    price = {"loss": 0.0, "reward": 0.5}[kl_in]
    whole = sequence_rewards(given.scores, given.kl, given.mask, price).tolist()
    expected = reference.group_advantages(whole, 2, "none")
    assert made.advantages(given).advantages[:, 0].tolist() == pytest.approx(expected)
    old, advantages, ref = torch.tensor([-1.0]), torch.tensor([2.0]), torch.tensor([-3.0])
    loss = made.token_losses(old, old, advantages, ref, 0.5).item()
    k3 = reference.kl_estimate(-1.0, -3.0, "k3")
    assert loss == pytest.approx(-2.0 + (0.5 * k3 if kl_in == "loss" else 0.0))


def test_best_of_n_learns_the_best_of_each_prompt_and_nothing_else() -> None:
    found = BestOfN(bandit(BestOfNOptions, Path("x"), samples_per_prompt=2)).advantages(
        batch([3.0, 5.0, 2.0, 1.0], [[0.0, 0.0]] * 4, [[True, True]] * 4)
    )
    assert found.rows.tolist() == [1, 2]
    assert found.metrics == {"kept_score": 3.5}
    assert found.advantages.eq(1).all()


# ------------------------------------------------------------------------------------------------------- whole runs


RUNS: dict[str, tuple[type[OnlineOptions], Callable, dict]] = {
    "reinforce": (ReinforceOptions, reinforce.run, {"samples_per_prompt": 1}),
    "learned": (ReinforceOptions, reinforce.run, {"samples_per_prompt": 1, "baseline": "learned"}),
    "rloo": (RLOOOptions, rloo.run, {}),
    "grpo": (GRPOOptions, grpo.run, {"epochs": 2, "minibatch_size": 4}),
    "bestofn": (BestOfNOptions, bestofn.run, {}),
}


@pytest.fixture
def whole(tiny_models: Path, tmp_path: Path):
    """A function that makes the options of a small run and gives its runner too."""
    asked = tmp_path / "prompts.jsonl"
    write_records(asked, [Prompt(messages=as_messages(f"say {n}")) for n in range(12)])

    def make(name: str, out: str, **changes) -> tuple[OnlineOptions, Callable]:
        kind, run, own = RUNS[name]
        given = {"model": str(tiny_models / "sft"), "reward_model": str(tiny_models / "reward"), "lr": 1e-3}
        given |= {"prompts": [str(asked)], "episodes": 48, "batch_size": 16, "max_new_tokens": 8}
        return kind(out=tmp_path / out, **({"samples_per_prompt": 4} | given | FAST | own | changes)), run

    return make


def numbers(out: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if "second" not in k} for line in read_metrics(out)]


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_equals_an_uninterrupted_one(whole, name, monkeypatch, tiny_models) -> None:
    once, run = whole(name, "once", kl_target=2.0)
    before = fingerprint(tiny_models / "sft"), fingerprint(tiny_models / "reward")
    run(once)
    assert (fingerprint(tiny_models / "sft"), fingerprint(tiny_models / "reward")) == before
    weights = fingerprint(once.out / "model.safetensors")
    assert weights != fingerprint(tiny_models / "sft" / "model.safetensors")
    assert [line["step"] for line in numbers(once.out)] == [1, 2, 3]
    assert all(line["first_ratio_error"] < 1e-5 for line in numbers(once.out))
    twice, _ = whole(name, "twice", kl_target=2.0)
    stop_after(2, run, twice, monkeypatch)
    run(twice)
    assert fingerprint(twice.out / "model.safetensors") == weights
    assert numbers(twice.out) == numbers(once.out)


def test_policies_kept_on_the_way_are_those_of_a_stopped_run_too(whole, monkeypatch) -> None:
    once, run = whole("rloo", "once", save_every=1)
    run(once)
    kept = sorted(path.name for path in (once.out / "policies").iterdir())
    assert kept == ["iteration-000001", "iteration-000002"], "the third, the last, is the result itself"
    weights = [fingerprint(path / "model.safetensors") for path in (once.out, *(once.out / "policies").iterdir())]
    assert len(set(weights)) == 3
    twice, _ = whole("rloo", "twice", save_every=1)
    stop_after(2, run, twice, monkeypatch)
    run(twice)
    for name in kept:
        assert fingerprint(twice.out / "policies" / name) == fingerprint(once.out / "policies" / name)
        assert load_policy(once.out / "policies" / name)[1].fingerprint == load_policy(once.out)[1].fingerprint


def test_responses_to_one_prompt_stand_side_by_side(whole, monkeypatch) -> None:
    seen = []
    original = collect.roll_out
    monkeypatch.setattr(
        collect, "roll_out", lambda policy, prompts, *rest: (seen.append(prompts), original(policy, prompts, *rest))[1]
    )
    options, run = whole("rloo", "out", episodes=16)
    run(options)
    groups = [[prompt.ids for prompt in seen[0][i : i + 4]] for i in range(0, 16, 4)]
    assert all(group == [group[0]] * 4 for group in groups)
    assert len({tuple(group[0]) for group in groups}) == 4


def test_only_the_kept_responses_pass_through_the_update(whole, monkeypatch) -> None:
    rows: list[int] = []
    original = update.padded_rows
    monkeypatch.setattr(update, "padded_rows", lambda e, r, c: (rows.extend(r), original(e, r, c))[1])
    options, run = whole("bestofn", "out", episodes=16)
    run(options)
    assert sorted(row // 4 for row in rows) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["reinforce", "rloo"])
def test_a_reward_model_like_a_coin_is_refused_unless_that_is_allowed(whole, name, tiny_models, tmp_path) -> None:
    coin = tmp_path / "coin"
    shutil.copytree(tiny_models / "reward", coin)
    results = {"valid_accuracy": 0.52, "valid_accuracy_interval": [0.48, 0.56], "valid_pairs": 600}
    (coin / "provenance.json").write_text(json.dumps({"stage": "reward", "results": results, "result": "coin"}))
    options, run = whole(name, "coin-policy", reward_model=str(coin), episodes=16)
    with pytest.raises(UsageError, match=r"cannot be told from chance; .* --allow-chance-reward-model"):
        run(options)
    among, _ = whole(name, "coin-among-others", rewards=[f"0.5*{coin}"])
    with pytest.raises(UsageError, match=r"cannot be told from chance; .* --allow-chance-reward-model"):
        run(among)
    run(options.model_copy(update={"allow_chance_reward_model": True}))
    assert (options.out / "model.safetensors").exists()


def test_the_old_name_of_an_option_still_works_and_is_warned_of(whole, capsys) -> None:
    options, _ = whole("rloo", "out")
    given = {"out": str(options.out), "model": "m", "prompts": ["-"], "insist": True}
    assert RLOOOptions.model_validate(given).allow_chance_reward_model
    assert "insist is now called allow_chance_reward_model" in capsys.readouterr().err
    with pytest.raises(ValueError, match="insist is the old name of allow_chance_reward_model"):
        RLOOOptions.model_validate({**given, "allow_chance_reward_model": True})
    with pytest.raises(SystemExit):
        main(["rloo", "--help"])
    assert "insist" not in capsys.readouterr().out
    assert main(["rloo", "--insist", "--model", "nowhere", "--prompts", "-", "--out", str(options.out)]) == 2
    assert (
        capsys.readouterr().err == "wukong: error: --reward-model (or --rewards) is required; see wukong rloo --help\n"
    )


def test_micro_batches_change_nothing_but_rounding(whole) -> None:
    for name in ("rloo", "grpo"):
        found = []
        for tokens in (8192, 40):
            options, run = whole(name, f"{name}{tokens}", micro_batch_tokens=tokens, episodes=16, minibatch_size=None)
            run(options)
            found.append(numbers(options.out)[0])
        for key in ("policy_loss", "grad_norm", "kl"):
            assert found[0][key] == pytest.approx(found[1][key], rel=1e-3, abs=1e-6), (name, key)


@pytest.mark.parametrize("name", ["reinforce", "bestofn"])
def test_the_pretraining_term_works_for_all(whole, name, tiny_models, tmp_path, byte_tokenizer) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    text = [str(tmp_path / "text.txt")]
    read = {"data": text, "valid_data": text, "tokenizer": str(tiny_models / "sft"), "template": "plain"}
    tokenize.run(TokenizeOptions(**read, out=tmp_path / "shards"))
    options, run = whole(name, "ptx", ptx_data=str(tmp_path / "shards"), ptx_coef=5.0, lr=3e-3)
    run(options)
    losses = [line["ptx_loss"] for line in numbers(options.out)]
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("rloo", {"samples_per_prompt": 3}, "--samples-per-prompt 3 does not divide"),
        ("grpo", {"minibatch_size": 5}, "--minibatch-size 5 does not divide"),
        ("reinforce", {"reward_model": None}, "there is no reward"),
        ("reinforce", {"reward_model": None, "ensemble": ["x"]}, "--ensemble adds to --reward-model"),
    ],
)
def test_impossible_options_are_refused(whole, name, changes, words) -> None:
    options, run = whole(name, "out", **changes)
    with pytest.raises(UsageError, match=words):
        run(options)
    assert not (options.out / "metrics.jsonl").exists() or not read_metrics(options.out)


# ------------------------------------------------------------------------------------ rewards that fail in a run


calls = 0


def after_two(answer):
    """A reward that is well for two batches and then is not."""

    def reward(prompts, texts):
        global calls  # noqa: PLW0603
        calls += 1
        return [float(len(text)) for text in texts] if calls <= 2 else answer(texts)

    return reward


def _raise(texts):
    raise ZeroDivisionError("by zero")


raises = after_two(_raise)
not_a_number = after_two(lambda texts: [float("nan")] * len(texts))
infinite = after_two(lambda texts: [float("inf")] * len(texts))
wrong_count = after_two(lambda texts: [1.0])
wrong_type = after_two(lambda texts: ["good"] * len(texts))
nothing = after_two(lambda texts: None)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("raises", "raised ZeroDivisionError: by zero"),
        ("not_a_number", "returned nan, expected a finite number"),
        ("infinite", "returned inf, expected a finite number"),
        ("wrong_count", "returned 1 numbers for 16 responses"),
        ("wrong_type", "returned 'good', expected a finite number"),
        ("nothing", "returned NoneType, expected a list of numbers"),
    ],
)
def test_a_reward_that_fails_stops_the_run_with_one_line_and_the_last_state_kept(whole, function, words) -> None:
    global calls  # noqa: PLW0603
    calls = 0
    options, run = whole("reinforce", "out", reward_model=None, rewards=[f"{__name__}:{function}"])
    with pytest.raises(RunError, match=words) as caught:
        run(options)
    assert "\n" not in str(caught.value)
    assert "reinforce stopped at iteration 3" in str(caught.value)
    assert "step-000002 is kept" in str(caught.value)
    kept = options.out / "checkpoints" / "step-000002"
    assert json.loads((kept / "state.json").read_text())["sha256"] == fingerprint(kept / "state.safetensors")
    calls = -10  # repaired: the same command resumes and learns the third step alone
    run(options)
    assert [line["step"] for line in read_metrics(options.out)] == [1, 2, 3]
    assert calls == -9


def test_ppo_without_a_reward_model_starts_its_value_model_from_the_sft_model(whole, tiny_models, monkeypatch) -> None:
    global calls  # noqa: PLW0603
    calls = -100
    options, _ = whole("reinforce", "out", reward_model=None, rewards=[f"{__name__}:raises"], episodes=16)
    given = {k: v for k, v in options.model_dump().items() if k in PPOOptions.model_fields}
    seen = []
    original = train.first_value_model
    monkeypatch.setattr(train, "first_value_model", lambda *given: (seen.append(original(*given)), seen[0])[1])
    ppo.run(PPOOptions(**given))
    assert "value_loss" in read_metrics(options.out)[0]
    assert isinstance(seen[0], ScalarModel)


def test_a_grader_that_fails_is_not_paid_again_when_the_run_goes_on(whole, monkeypatch) -> None:
    failing = threading.Event()

    def grade(body: dict) -> str | Raw:
        with lock:
            answered.append(json.dumps(body))
            if len(answered) == 20:  # in the second of three iterations
                failing.set()
        return Raw({"choices": None}) if failing.is_set() else str(1 + len(answered[-1]) % 10)

    answered, lock = [], threading.Lock()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with openai_server(grade) as (url, _):
        options, run = whole("reinforce", "out", reward_model=None, rewards=[f"openai:m@{url}"])
        with pytest.raises(RunError, match=r"has no choices.*run the same command"):
            run(options)
        kept = [json.loads(line)["key"] for line in (options.out / ".replies.jsonl").open()]
        assert len(set(kept)) == len(kept) >= 16
        before = len(answered)
        failing.clear()
        run(options)
    assert [line["step"] for line in read_metrics(options.out)] == [1, 2, 3]
    assert len(kept) + len(answered) - before == len(set(answered)) <= 48
    assert not (options.out / ".replies.jsonl").exists()
