"""Sampling against `generate` of transformers: the same weights, prompts, lengths and precision.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --peer-dir ~/.cache/transformers-4.57.6 --cases micro-64 flat --rounds 5

Each contender runs in a process of its own (so that its peak memory is its own) and they take turns, round by round,
so that a change of the machine's speed meets all. The peer is installed into --peer-dir (a temporary directory when
none is named) by `pip install --target`; it uses the same torch. docs/benchmarks.md shows a result.

The contenders:

    ours           wukong.rollout.generate
    default        transformers' generate with its default cache
    static         the same with a static cache (cache_implementation="static", without compiling)
    default+draw   the same as default, with our two-level draw in the place of torch.multinomial

and the cases: 16 and 64 sequences of 32 + 64 tokens of GPT-2 124M, 64 of a model of 4 layers; `ends`: 256 prompts of
8 to 56 tokens whose answers end at random, at most 256 tokens long, 64 in a batch. `flat` compares ours with itself:
twice the prompts, all prompts of the same length, and answers whose lengths vary less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EOS = 0
SIZES = {
    "gpt2": {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "micro": {"vocab_size": 4096, "n_positions": 512, "n_embd": 256, "n_layer": 4, "n_head": 4},
}


@dataclass(frozen=True)
class Case:
    size: str
    prompts: int
    batch: int
    prompt_lengths: tuple[int, int] = (32, 32)
    new_tokens: int = 64
    mean_length: float = 0.0
    """Answers end with probability 1/mean_length at each token; 0: they never do."""


ENDS = Case("micro", 256, 64, (8, 56), 256, 48.0)
CASES = {
    "gpt2-16": Case("gpt2", 16, 16),
    "gpt2-64": Case("gpt2", 64, 64),
    "micro-64": Case("micro", 64, 64),
    "micro-ends": ENDS,
    "gpt2-ends": Case("gpt2", 64, 16, (8, 56), 256, 48.0),
}
FLAT = {
    "256 prompts of 8 to 56 tokens": ENDS,
    "512 prompts": Case("micro", 512, 64, (8, 56), 256, 48.0),
    "prompts of 32 tokens": Case("micro", 256, 64, (32, 32), 256, 48.0),
    "answers of 48 tokens each": Case("micro", 256, 64, (8, 56), 48),
}
DTYPES = ("float32", "bfloat16")
CONTENDERS = ("ours", "default", "static", "default+draw")


# ------------------------------------------------------------------------------------------------- in the processes


def weights(case: Case):
    """Random weights as GPT-2 begins with. For answers that end, the last LayerNorm gets a bias in one direction and
    the end token's embedding a component in it: so its logit is a constant and some noise."""
    import torch

    from wukong.model.gpt2 import GPT2, GPT2Config

    torch.manual_seed(0)
    model = GPT2(GPT2Config(**SIZES[case.size])).eval()
    with torch.no_grad():
        model.wte.weight[EOS, 0] = -1.0 if not case.mean_length else 0.0
        model.ln_f.bias[0] = 20.0
        if case.mean_length:
            others = torch.logsumexp(model.wte.weight[:, 0] * 20, 0) + 0.5 * 0.02**2 * model.config.n_embd
            model.wte.weight[EOS, 0] = (float(others) - math.log(case.mean_length - 1)) / 20
    return model


def prompts_of(case: Case) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(1)
    low, high = case.prompt_lengths
    lengths = torch.randint(low, high + 1, (case.prompts,), generator=generator).tolist()
    return [torch.randint(1, SIZES[case.size]["vocab_size"], (n,), generator=generator).tolist() for n in lengths]


def ours(case: Case, dtype: str):
    """A function that samples once and returns the number of tokens."""
    import torch

    from wukong.rollout import generate, inference_copy
    from wukong.training.compute import Compute

    model = inference_copy(weights(case), Compute(torch.device("cpu"), getattr(torch, dtype)))
    prompts = prompts_of(case)

    def run() -> int:
        answers = generate(
            model, prompts, eos_id=EOS, max_new_tokens=case.new_tokens, seeds=range(len(prompts)),
            batch_size=case.batch,
        )  # fmt: skip
        return sum(len(answer.ids) for answer in answers)

    return run


def theirs(case: Case, dtype: str, manner: str):
    import torch
    import transformers

    model = weights(case)
    config = transformers.GPT2Config(**SIZES[case.size], bos_token_id=EOS, eos_token_id=EOS)
    peer = transformers.GPT2LMHeadModel(config).eval()
    matrices = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # their Conv1D keeps (in, out)
    state = {name: w.t() if name.endswith(matrices) else w for name, w in model.state_dict().items()}
    peer.transformer.load_state_dict(state)
    peer = peer.to(getattr(torch, dtype))
    if manner == "default+draw":
        from wukong.rollout import draw

        torch.multinomial = lambda p, num_samples: draw(p.float(), torch.rand(len(p))).unsqueeze(1)
    more = {"cache_implementation": "static", "disable_compile": True} if manner == "static" else {}
    prompts = sorted(prompts_of(case), key=len)  # like lengths in a batch: the kinder order

    def run() -> int:
        tokens = 0
        for start in range(0, len(prompts), case.batch):
            some = prompts[start : start + case.batch]
            longest = max(map(len, some))
            ids = torch.tensor([[EOS] * (longest - len(prompt)) + prompt for prompt in some])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in some])
            with torch.no_grad():
                written = peer.generate(
                    ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=case.new_tokens,
                    pad_token_id=EOS, **more,
                )[:, longest:]  # fmt: skip
            ends = (written == EOS).int()
            tokens += int(((ends.cumsum(1) - ends) == 0).sum())  # up to the first end token, with it
        return tokens

    return run


def peak(dtype: str) -> float:
    """FLOP/s of a product of large matrices."""
    import torch

    a = torch.randn(1024, 1024).to(getattr(torch, dtype))
    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begin)
    return 2 * 1024**3 / min(seconds)


def worker(case: Case, dtype: str, contender: str) -> None:
    """Runs once for each line it reads and answers with a line of JSON; the first is the warming up."""
    import torch

    from wukong.training.compute import compute_for

    compute_for("float32", "cpu")  # the allocator is told to keep memory: for the peer as for us
    torch.manual_seed(0)
    run = ours(case, dtype) if contender == "ours" else theirs(case, dtype, contender)
    for _ in sys.stdin:
        begin = time.perf_counter()
        tokens = run()
        seconds = time.perf_counter() - begin
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB: Linux counts KiB
        print(json.dumps({"tokens": tokens, "seconds": seconds, "memory": memory, "peak": peak(dtype)}), flush=True)


# ------------------------------------------------------------------------------------------------ the one that asks


class Contender:
    def __init__(self, case: Case, dtype: str, name: str, peer_dir: str) -> None:
        path = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        path = path if name == "ours" else [peer_dir, *path]
        self.dtype, self.name, self.found = dtype, name, list[dict]()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "worker", json.dumps(vars(case)), dtype, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": ":".join(path)},
        )  # fmt: skip

    def run(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.found.append(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.communicate()

    def rates(self) -> list[float]:
        return [one["tokens"] / one["seconds"] for one in self.found[1:]]

    def share_of_peak(self, case: Case) -> float:
        """Of the matrix products that the real tokens need: 2 FLOPs a weight, the output layer at answers only."""
        size = SIZES[case.size]
        blocks, output = 24 * size["n_layer"] * size["n_embd"] ** 2, 2 * size["vocab_size"] * size["n_embd"]
        read = sum(map(len, prompts_of(case)))
        shares = [
            (one["tokens"] * (blocks + output) + read * blocks) / one["seconds"] / one["peak"] for one in self.found[1:]
        ]
        return statistics.median(shares)


def compare(case: Case, contenders: list[Contender], rounds: int) -> None:
    try:
        for _ in range(rounds + 1):
            for contender in contenders:
                contender.run()
    finally:
        for contender in contenders:
            contender.close()


def versus(name: str, peer_dir: str, rounds: int) -> None:
    case = CASES[name]
    contenders = [Contender(case, dtype, who, peer_dir) for dtype in DTYPES for who in CONTENDERS]
    compare(case, contenders, rounds)
    for contender in contenders:
        rates = contender.rates()
        own = next(c for c in contenders if c.name == "ours" and c.dtype == contender.dtype)
        ratio = statistics.median(mine / one for mine, one in zip(own.rates(), rates, strict=True))
        print(
            f"| {name} | {contender.dtype} | {contender.name} | {statistics.median(rates):,.0f} | {min(rates):,.0f} | "
            f"{max(rates):,.0f} | {ratio:.2f} | {contender.found[-1]['memory']:.2f} | "
            f"{contender.share_of_peak(case):.0%} |",
            flush=True,
        )


def flat(rounds: int) -> None:
    contenders = [Contender(case, "float32", "ours", "") for case in FLAT.values()]
    compare(ENDS, contenders, rounds)
    print("\n| ours, float32 | tokens | tokens/s | min | max | of the first |\n| --- " + "| ---: " * 5 + "|")
    for name, contender in zip(FLAT, contenders, strict=True):
        rates = contender.rates()
        ratio = statistics.median(one / first for one, first in zip(rates, contenders[0].rates(), strict=True))
        print(
            f"| {name} | {contender.found[-1]['tokens']:,} | {statistics.median(rates):,.0f} | {min(rates):,.0f} | "
            f"{max(rates):,.0f} | {ratio:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, "flat"], default=[*CASES, "flat"])
    parser.add_argument("--peer-dir", help="where transformers is installed, or is to be (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        peer_dir = options.peer_dir or temporary
        if options.cases != ["flat"] and not (Path(peer_dir) / "transformers").exists():
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", peer_dir]
            subprocess.run([*install, "-r", str(ROOT / "benchmarks/requirements-transformers.txt")], check=True)
        if options.cases != ["flat"]:
            print("| case | precision | by | tokens/s | min | max | ours is x times | GiB | of the matrix peak |")
            print("| --- | --- | --- " + "| ---: " * 6 + "|")
        for name in options.cases:
            if name != "flat":
                versus(name, peer_dir, options.rounds)
        if "flat" in options.cases:
            flat(options.rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(Case(**json.loads(sys.argv[2])), *sys.argv[3:])
    else:
        main()
