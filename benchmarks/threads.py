"""Why `wukong` sets OMP_WAIT_POLICY=PASSIVE: training speed with and without, on an idle and on a busy machine.

    python benchmarks/threads.py

Tokens a second of training steps of the `nano` model, the median of 25 after one another in a process of its own;
"busy" means that one other process keeps one core at work.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

ROWS, CONTEXT, STEPS, ROUNDS = 8, 256, 25, 3


def worker() -> None:
    import torch

    from wukong.model.gpt2 import GPT2, PRESETS, GPT2Config
    from wukong.stages.common import language_model_loss
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


def measure(policy: str) -> float:
    environment = {**os.environ, "OMP_WAIT_POLICY": policy}
    command = [sys.executable, __file__, "worker"]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    print("| machine | policy | tokens/s, median | min | max |\n| --- | --- | ---: | ---: | ---: |")
    for load in ("idle", "busy"):
        burner = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if load == "busy" else None
        try:
            found: dict[str, list[float]] = {"ACTIVE": [], "PASSIVE": []}
            for _ in range(ROUNDS):  # in turn, so that a change of the machine's speed meets both
                for policy, values in found.items():
                    values.append(measure(policy))
        finally:
            if burner:
                burner.kill()
        for policy, values in found.items():
            print(f"| {load} | {policy} | {statistics.median(values):,.0f} | {min(values):,.0f} | {max(values):,.0f} |")


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
