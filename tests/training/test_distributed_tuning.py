"""Several processes make what one makes, also with adapters and frozen layers, which sharded models cannot share."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.stages.tiny_data import write_jsonl
from tests.training.jobs import Jobs
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.tokenizer import Tokenizer

SETTINGS = "--episodes 16 --batch-size 8 --minibatch-size 4 --ppo-epochs 2 --max-new-tokens 8 --lr 1e-3 --adam-eps 1e-4"
SETTINGS += " --no-tensorboard --precision float32 --missing-eos-score None"
CONFIG = GPT2Config(vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [["--lora-rank", "2"], ["--freeze-layers", "1"]], ids=["lora", "freeze"])
def test_several_processes_tune_what_one_tunes(tmp_path: Path, tuning: list[str]) -> None:
    tokenizer = Tokenizer.train([], 257, "plain")
    torch.manual_seed(0)
    save_policy(tmp_path / "sft", GPT2(CONFIG), tokenizer)
    save_reward(tmp_path / "reward", ScalarModel(GPT2(CONFIG)), tokenizer)
    asked = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"say {n}"} for n in range(12)])
    models = ["--model", str(tmp_path / "sft"), "--reward-model", str(tmp_path / "reward"), "--prompts", str(asked)]
    found = []
    for size, parallel in ((1, "ddp"), (2, "ddp"), (2, "fsdp")):
        out, log = tmp_path / f"{size}-{parallel}", tmp_path / "log"
        command = ["ppo", *models, "--out", str(out), "--parallel", parallel, *SETTINGS.split(), *tuning]
        assert Jobs().run(size, command, log) == [0] * size, log.read_text()
        found.append(load_file(next(out.glob("*.safetensors"))))
    one, *several = found
    for tensors in several:
        assert tensors.keys() == one.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensors[name], tensor, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
