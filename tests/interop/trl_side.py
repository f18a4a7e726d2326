"""What a user of TRL does with our files: run by TRL's interpreter, where there is no wukong.

    python trl_side.py DIRECTORY

DIRECTORY holds policy/, reward/ and, as `wukong.as_trl` made them, prompts.jsonl, pairs.jsonl and votes.jsonl.
What TRL trained, sampled and scored is written beside them.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)
from trl.data_utils import apply_chat_template, extract_prompt

HERE = Path(sys.argv[1])
COMMON = {"report_to": [], "save_strategy": "no", "logging_steps": 1, "use_cpu": True, "bf16": False, "seed": 0,
          "disable_tqdm": True, "gradient_checkpointing": False}  # fmt: skip
GROUPS = {"num_generations": 8, "per_device_train_batch_size": 32, "max_completion_length": 12, "max_steps": 4,
          "beta": 0.01, "learning_rate": 1e-2, "reward_weights": [1.0, 0.0]}  # fmt: skip
OFFLINE = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-3}


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text().splitlines()]


def write(name: str, value) -> None:
    (HERE / f"{name}.json").write_text(json.dumps(value))


def online(name: str, trainer_class, config) -> None:
    """Trains our policy against our reward model, both named by their directories, as TRL's pages show it."""
    seen = []

    def witness(prompts, completions, **_) -> list[float]:
        """A second reward of weight 0: it only writes down what there was to be scored."""
        seen.append([[p, c[0]["content"]] for p, c in zip(prompts, completions, strict=True)])
        return [0.0] * len(prompts)

    trainer = trainer_class(
        model=str(HERE / "policy"),
        reward_funcs=[str(HERE / "reward"), witness],
        args=config(output_dir=str(HERE / "work"), **COMMON, **GROUPS),
        train_dataset=Dataset.from_list(rows("prompts")),
    )
    trainer.train()
    trainer.save_model(str(HERE / name))
    reward_name = trainer.reward_func_names[0]
    means = [line[f"rewards/{reward_name}/mean"] for line in trainer.state.log_history if "reward" in line]
    write(name, {"means": means, "seen": seen})


def reading(name: str) -> None:
    """The tokens and log-probabilities of the first pairs as TRL's saved policy has them."""
    tokenizer = AutoTokenizer.from_pretrained(HERE / name)
    model = AutoModelForCausalLM.from_pretrained(HERE / name).eval()
    found = []
    for row in rows("pairs")[:6]:
        text = apply_chat_template(row, tokenizer)
        prompt, answer = (tokenizer(text[part], add_special_tokens=False).input_ids for part in ("prompt", "chosen"))
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + answer])).logits[0, :-1].log_softmax(-1)
        found.append([float(logprobs[at, token]) for at, token in enumerate((prompt + answer)[1:])][len(prompt) - 1 :])
    write(f"{name}-logprobs", found)


def reward_model() -> None:
    trainer = RewardTrainer(
        model=str(HERE / "policy"),
        args=RewardConfig(output_dir=str(HERE / "work"), **COMMON, **OFFLINE),
        train_dataset=Dataset.from_list(rows("pairs")),
    )
    trainer.train()
    trainer.save_model(str(HERE / "trl-reward"))
    tokenizer = AutoTokenizer.from_pretrained(HERE / "trl-reward")
    model = AutoModelForSequenceClassification.from_pretrained(HERE / "trl-reward").eval()
    scores = []
    for row in rows("pairs")[:6]:
        text = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False)
        with torch.no_grad():
            scores.append(float(model(**tokenizer(text, return_tensors="pt")).logits[0, 0]))
    write("trl-reward", scores)


def offline(name: str, trainer_class, config, data: list[dict]) -> None:
    trainer = trainer_class(
        model=str(HERE / "policy"),
        args=config(output_dir=str(HERE / "work"), **COMMON, **OFFLINE),
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(HERE / "policy"),
    )
    trainer.train()
    trainer.save_model(str(HERE / name))


def data_sets() -> None:
    """Our pairs after TRL's own functions: with the prompt inside the answers, and found in them again."""
    pairs = Dataset.from_list(rows("pairs"))
    both = {name: [p + a for p, a in zip(pairs["prompt"], pairs[name], strict=True)] for name in ("chosen", "rejected")}
    implicit = Dataset.from_dict(both)
    implicit.to_json(str(HERE / "implicit.jsonl"))
    implicit.map(extract_prompt).to_json(str(HERE / "explicit.jsonl"))
    tokenizer = AutoTokenizer.from_pretrained(HERE / "policy")
    told = {"tokenize": True, "return_dict": False}
    asked = [tokenizer.apply_chat_template(p, add_generation_prompt=True, **told) for p in pairs["prompt"]]
    write("tokens", [asked, [tokenizer.apply_chat_template(turns, **told) for turns in both["chosen"]]])


if __name__ == "__main__":
    assert importlib.util.find_spec("wukong") is None, "TRL must do without us"
    online("rloo", RLOOTrainer, RLOOConfig)
    online("grpo", GRPOTrainer, GRPOConfig)
    reading("rloo")
    reading("grpo")
    reward_model()
    offline("dpo", DPOTrainer, DPOConfig, rows("pairs"))
    offline("kto", KTOTrainer, KTOConfig, rows("votes"))
    data_sets()
