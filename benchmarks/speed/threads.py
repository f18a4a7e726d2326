"""Training and decoding with threads that wait actively, passively, or as OpenMP likes.

    python benchmarks/speed/threads.py

Tokens a second of the `nano` model, the median of 25 training steps and of 5 batches of 64 responses, after one
another in a process of its own; "busy" means that one other process keeps one core at work.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.table import markdown_heading, markdown_row

ROWS, CONTEXT, STEPS, ROUNDS = 8, 256, 25, 3
RESPONSES, NEW_TOKENS, BATCHES = 64, 64, 5
POLICIES = {
    "ACTIVE": {"OMP_WAIT_POLICY": "ACTIVE"},
    "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "as it comes": {},
}


def worker() -> None:
    import torch

    from wukong.model.gpt2 import GPT2, PRESETS, GPT2Config
    from wukong.rollout import generate
    from wukong.scoring import language_model_loss
    from wukong.training.compute import compute_for

    compute = compute_for("float32", "cpu")
    model = GPT2(GPT2Config(vocab_size=3072, **PRESETS["nano"])).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, 3072, (ROWS, CONTEXT + 1))
    seconds = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        language_model_loss(model, ids, compute).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    print(ROWS * CONTEXT / statistics.median(seconds))
    model.eval()
    seconds = []
    for batch in range(BATCHES):
        begin = time.perf_counter()
        seeds = range(batch * RESPONSES, (batch + 1) * RESPONSES)
        generate(model, ids[:1, :16].tolist() * RESPONSES, eos_id=-1, max_new_tokens=NEW_TOKENS, seeds=seeds)
        seconds.append(time.perf_counter() - begin)
    print(RESPONSES * NEW_TOKENS / statistics.median(seconds))


def measure(policy: str) -> list[float]:
    """[training, decoding], tokens a second."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | POLICIES[policy]
    command = [sys.executable, __file__, "worker"]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return [float(line) for line in out.split()]


def main() -> None:
    print(markdown_heading(["machine", "threads wait", "training", "min", "max", "decoding", "min", "max"], left=2))
    for load in ("idle", "busy"):
        burner = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if load == "busy" else None
        try:
            found: dict[str, list[list[float]]] = {policy: [] for policy in POLICIES}
            for _ in range(ROUNDS):  # in turn, so that a change of the machine's speed meets all
                for policy, values in found.items():
                    values.append(measure(policy))
        finally:
            if burner:
                burner.kill()
        for policy, values in found.items():
            cells = [f"{f(kind):,.0f}" for kind in zip(*values, strict=True) for f in (statistics.median, min, max)]
            print(markdown_row([load, policy, *cells]), flush=True)


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
