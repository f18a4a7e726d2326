"""Where the time of a PPO step goes, and how long TRL's takes for the same work.

    python benchmarks/speed/ppo_step.py --model micro                    # ours: rollout, scoring, update
    python benchmarks/speed/ppo_step.py --trl ~/trl-venv --value-models separate shared

The same random weights, prompts of 32 tokens, responses of 48, episodes and epochs on both sides, one update an epoch;
entropy, masks and metrics included. TRL 1.12.0 runs in an environment of its own, which is made where it is absent.
Each contender is a process that waits for its turn: they take turns step by step, so that a change of the machine's
speed meets all. The first step of each, a warm-up, does not count. All have the same settings for memory and threads.
On a machine that is busy otherwise, --threads 1 and the column of processor seconds say more than the clock.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser, speed_options
from shared.peers import python_of_trl
from shared.table import markdown_table
from shared.turns import Contender, compete, peak_speeds, precisions_here, turns

PROMPT, RESPONSE, EPOCHS, TURNS = 32, 48, 4, 100
PHASES = ("rollout", "scoring", "update")
SIZES = {"gpt2": (50257, 16), "micro": (4096, 64)}
"""Preset -> vocabulary, episodes."""


# ------------------------------------------------------------------------------------------------------------ workers


def write_models(directory: Path, size: str) -> None:
    """sft/ and reward/ in Hugging Face's format, with random weights."""
    import torch
    from shared.random_models import save_random_policy, save_random_reward

    from wukong.tokenizer import Tokenizer

    draw, vocab_size = random.Random(0), SIZES[size][0]
    words = ("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(vocab_size // 2))
    tokenizer = Tokenizer.train([" ".join(words)] * 2, vocab_size, "plain")  # as many tokens as the model has rows
    torch.manual_seed(0)
    save_random_policy(directory / "sft", tokenizer, size)
    save_random_reward(directory / "reward", tokenizer, size)


def prompts_of(size: str, episodes: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(257, SIZES[size][0]) for _ in range(PROMPT)] for _ in range(episodes)]


def ours(directory: Path, out: str, size: str, episodes: int, precision: str, value_model: str, device: str) -> None:
    import torch

    from wukong.model.hub import load_policy, load_reward
    from wukong.scoring import frozen, scores_of
    from wukong.stages.online.ppo import PPOOptions
    from wukong.stages.online.rollouts import TokenisedPrompt
    from wukong.stages.online.train import Trainer, first_value_model
    from wukong.training.session import Session

    options = PPOOptions(
        out=Path(out), model=str(directory / "sft"), reward_model=str(directory / "reward"), prompts=["-"],
        batch_size=episodes, episodes=episodes * TURNS, ppo_epochs=EPOCHS, max_new_tokens=RESPONSE, tensorboard=False,
        missing_eos_score=None, precision=precision, value_model=value_model, checkpoint_seconds=1e9,
        device=device,
    )  # fmt: skip
    policy, tokenizer = load_policy(options.model)
    value = first_value_model(options, policy)
    state = {"kl_coef": options.kl_coef, "first_distinct_2": None}
    with Session(options, {"policy": policy, "value": value}, TURNS, "ppo", state, lr=options.lr) as session:
        reference = frozen(load_policy(options.model)[0], session.compute)
        reward_model = frozen(load_reward(options.reward_model)[0], session.compute)

        def score(rolled):
            found = scores_of(reward_model, rolled.scored_sequences, session.compute, session.micro_batch_tokens)
            return torch.tensor(found, device=session.compute.device)

        prompts = [TokenisedPrompt([], ids) for ids in prompts_of(size, episodes)]
        trainer = Trainer(session, options, policy, reference, value, score, tokenizer)
        for _, notes in zip(session.steps(), turns(), strict=False):
            metrics = trainer.step(prompts)
            notes |= {phase: metrics[f"{phase}_seconds"] for phase in PHASES}


def trl(directory: Path, out: str, size: str, episodes: int, precision: str, _: str, device: str) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    mine = turns()

    class TakeTurns(TrainerCallback):
        def on_step_end(self, *_, **__):
            if next(mine, None) is None:
                os._exit(0)  # nobody asks for another step

    def language_model():
        return AutoModelForCausalLM.from_pretrained(directory / "sft")

    def scalar_model():
        return AutoModelForSequenceClassification.from_pretrained(directory / "reward", num_labels=1)

    config = PPOConfig(
        output_dir=out, per_device_train_batch_size=episodes, gradient_accumulation_steps=1, num_ppo_epochs=EPOCHS,
        num_mini_batches=1, local_rollout_forward_batch_size=episodes, response_length=RESPONSE, temperature=1.0,
        total_episodes=episodes * TURNS, num_sample_generations=0, report_to=[], save_strategy="no",
        use_cpu=device == "cpu", bf16=precision == "bfloat16", gradient_checkpointing=False, learning_rate=1e-5,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(directory / "sft", padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=language_model(), ref_model=language_model(),
        reward_model=scalar_model(), value_model=scalar_model(), callbacks=[TakeTurns()],
        train_dataset=Dataset.from_dict({"input_ids": prompts_of(size, episodes)}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts_of(size, episodes)}),
    )  # fmt: skip
    next(mine)
    trainer.train()


# --------------------------------------------------------------------------------------------------------- comparison


def arithmetic(size: str, episodes: int, value_model: str, epochs: int = EPOCHS) -> float:
    """The floating-point operations that a step cannot do without (`wukong.plan` counts the same)."""
    from wukong.model.gpt2 import PRESETS, GPT2Config
    from wukong.plan import PlanOptions, cost_of
    from wukong.stages.online.ppo import PPOOptions
    from wukong.training.compute import compute_for

    config = GPT2Config(**{**PRESETS[size], "vocab_size": SIZES[size][0]})
    options = PPOOptions(
        out=Path("-"), model="-", reward_model="-", prompts=["-"], episodes=episodes, ppo_epochs=epochs,
        max_new_tokens=RESPONSE, value_model=value_model,
    )  # fmt: skip
    compute = compute_for("float32", "cpu")
    cost = cost_of(options, config, compute, PlanOptions(recipe=Path("-"), prompt_tokens=PROMPT))
    return cost.products + cost.decoding


def table(contenders: list[Contender], size: str, episodes: int, speeds: dict[str, float]) -> str:
    """Markdown: medians, spread, memory, the part of the matrix peak, and the ratio to the fastest of TRL's."""
    others = [c.median("seconds") for c in contenders if c.name.startswith("trl")]
    columns = ["", "seconds", "least", "most", "processor", *PHASES, "peak GB", "of matrix peak", "update", "TRL takes"]
    rows = []
    for one in contenders:
        kind, precision, value_model = one.name.split()
        seconds = [result["seconds"] for result in one.results]
        cells = [one.name, f"{one.median('seconds'):.2f}", f"{min(seconds):.2f}", f"{max(seconds):.2f}"]
        cells.append(f"{one.median('processor'):.2f}")
        cells += [f"{one.median(p):.2f}" if kind == "wukong" else "" for p in PHASES]
        work = arithmetic(size, episodes, value_model)
        cells += [f"{one.results[-1]['peak']:.2f}", f"{work / one.median('seconds') / speeds[precision]:.0%}"]
        updating = arithmetic(size, episodes, value_model, 2 * EPOCHS) - work  # with epochs nothing else grows
        cells.append(f"{updating / one.median('update') / speeds[precision]:.0%}" if kind == "wukong" else "")
        cells.append(f"{min(others) / one.median('seconds'):.2f} x" if others and kind == "wukong" else "")
        rows.append(cells)
    return markdown_table(columns, rows)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", choices=SIZES, default="gpt2")
    parser.add_argument("--episodes", type=int, help="in place of the model's own number")
    parser.add_argument("--trl", type=Path, help="a virtual environment with TRL; made there when absent")
    parser.add_argument("--value-models", nargs="+", default=["separate"], choices=["separate", "shared"])
    speed_options(parser, rounds=5)
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        kind, directory, out, size, episodes, *rest = arguments.worker
        return {"wukong": ours, "trl": trl}[kind](Path(directory), out, size, int(episodes), *rest)
    arguments.precisions = arguments.precisions or precisions_here(arguments.device)
    size, episodes = arguments.model, arguments.episodes or SIZES[arguments.model][1]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_models(directory, size)
        kinds = [("wukong", sys.executable, value_model) for value_model in arguments.value_models]
        if arguments.trl:
            kinds.append(("trl", python_of_trl(arguments.trl), "separate"))
        contenders = []
        for precision in arguments.precisions:
            for kind, python, value_model in kinds:
                worker = [kind, str(directory), tempfile.mkdtemp(dir=directory), size, str(episodes), precision]
                command = [python, __file__, "--worker", *worker, value_model, arguments.device]
                contenders.append(Contender(f"{kind} {precision} {value_model}", command, directory, arguments.threads))
        compete(contenders, arguments.rounds)
        from wukong.model.gpt2 import PRESETS

        speeds = peak_speeds(arguments.precisions, PRESETS[size]["n_embd"], arguments.threads, arguments.device)
        print(
            f"{size}, {episodes} episodes of {PROMPT} + {RESPONSE} tokens, {EPOCHS} epochs, {arguments.threads} threads"
        )
        print("; ".join(f"{name}: {speed / 1e9:,.0f} GFLOP/s" for name, speed in speeds.items()))
        print(f"\n{table(contenders, size, episodes, speeds)}")


if __name__ == "__main__":
    main()
