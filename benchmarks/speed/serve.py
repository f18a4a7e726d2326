"""How much batching the server's requests pays: tokens a second of streams one at a time and of 32 at once.

    python benchmarks/speed/serve.py

A random model of 4 layers, 256 wide, behind `wukong serve` in a process of its own, asked over HTTP with streaming.
Both ways are measured in turn, several times, so that a change of the machine's speed meets both; the medians are
compared. docs/tools/serve.md shows a result.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser
from shared.random_models import save_random_policy
from shared.table import markdown_table

STREAMS = 32
NEW_TOKENS = 96
ALONE = 4  # requests measured one after the other in each round


def write_model(directory: Path) -> None:
    """Random weights, so that the end token is as seldom as any other; the work does not depend on them."""
    import torch

    from wukong.tokenizer import Tokenizer

    torch.manual_seed(0)
    tokenizer = Tokenizer.train([f"Boil {n} eggs for {n % 9} minutes." for n in range(50)], 280)
    save_random_policy(directory, tokenizer, "micro")  # 4 layers, 256 wide


async def stream(client: httpx.AsyncClient, seed: int) -> int:
    """Reads one answer to its end; returns its number of tokens."""
    body = {
        "model": "policy",
        "messages": [{"role": "user", "content": f"Boil {seed} eggs"}],
        "max_tokens": NEW_TOKENS,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        # Not line by line: on two cores the client's own work would be measured.
        tail = b"".join([chunk async for chunk in response.aiter_raw()])[-1000:]
    return int(re.findall(rb'"completion_tokens": (\d+)', tail)[-1])


async def tokens_per_second(client: httpx.AsyncClient, at_once: int, count: int) -> float:
    begin, tokens = time.perf_counter(), 0
    for first in range(0, count, at_once):
        tokens += sum(await asyncio.gather(*(stream(client, seed) for seed in range(first, first + at_once))))
    return tokens / (time.perf_counter() - begin)


async def measure(address: str, rounds: int) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {1: [], STREAMS: []}
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        await tokens_per_second(client, 2, 2)  # warm
        for _ in range(rounds):
            for at_once, values in found.items():
                values.append(await tokens_per_second(client, at_once, max(at_once, ALONE)))
    return found


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory) / "policy")
        command = [sys.executable, "-m", "wukong", "serve", f"{directory}/policy", "--port", "0", "--device", "cpu"]
        command += ["--precision", "float32"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            address = server.stderr.readline().split()[3].removesuffix("/v1")
            try:
                found = asyncio.run(measure(address, rounds))
            finally:
                server.terminate()
    rows = [[at_once, *(f"{f(v):,.0f}" for f in (statistics.median, min, max))] for at_once, v in found.items()]
    print(markdown_table(["streams", "tokens/s", "min", "max"], rows, left=0))
    print(f"\n{statistics.median(found[STREAMS]) / statistics.median(found[1]):.1f} times as many")


if __name__ == "__main__":
    main()
