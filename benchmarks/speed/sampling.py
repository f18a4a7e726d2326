"""Sampling against `generate` of transformers: the same weights, prompts, lengths and precision.

    python benchmarks/speed/sampling.py
    python benchmarks/speed/sampling.py --peer-dir ~/.cache/transformers-4.57.6 --cases micro-64 flat --rounds 5

Each contender runs in a process of its own (so that its peak memory is its own) and they take turns, round by round,
so that a change of the machine's speed meets all. The peer is installed into --peer-dir (a temporary directory when
none is named) by `pip install --target`; it uses the same torch. docs/results/benchmarks.md shows a result.

The contenders:

    ours           wukong.rollout.generate
    ours-pytorch   the same without our own kernels for a CPU, as where there is no C++ compiler
    default        transformers' generate with its default cache
    static         the same with a static cache (cache_implementation="static", without compiling)
    default+draw   the same as default, with our two-level draw in the place of torch.multinomial

and the cases: 16 and 64 sequences of 32 + 64 tokens of GPT-2 124M, 64 of a model of 4 layers; `ends`: 256 prompts of
8 to 56 tokens whose answers end at random, at most 256 tokens long, 64 in a batch. `flat` compares ours with itself on
1,024 prompts whose answers end at random: twice the prompts, prompts of one length, answers of one length.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import ROOT, new_parser, speed_options
from shared.peers import install_transformers
from shared.table import markdown_heading, markdown_row, markdown_table
from shared.turns import Contender, compete, peak_speeds, precisions_here, turns

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
MANY = Case("micro", 1024, 64, (8, 56), 128, 24.0)
FLAT = {
    "1,024 prompts of 8 to 56 tokens": MANY,
    "2,048 prompts": replace(MANY, prompts=2048),
    "prompts of 32 tokens": replace(MANY, prompt_lengths=(32, 32)),
    "answers of 17 tokens each": replace(MANY, new_tokens=17, mean_length=0.0),  # their mean in the other cases
}
CONTENDERS = ("ours", "ours-pytorch", "default", "static", "default+draw")


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


def ours(case: Case, dtype: str, device: str):
    """A function that samples once and returns the number of tokens."""
    import torch

    from wukong.rollout import generate, inference_copy
    from wukong.training.compute import Compute

    compute = Compute(torch.device(device), getattr(torch, dtype))
    model = inference_copy(weights(case).to(device), compute)
    prompts = prompts_of(case)

    def run() -> int:
        answers = generate(
            model, prompts, eos_id=EOS, max_new_tokens=case.new_tokens, seeds=range(len(prompts)),
            batch_size=case.batch,
        )  # fmt: skip
        return sum(len(answer.ids) for answer in answers)

    return run


def theirs(case: Case, dtype: str, manner: str, device: str):
    import torch
    import transformers

    model = weights(case)
    config = transformers.GPT2Config(**SIZES[case.size], bos_token_id=EOS, eos_token_id=EOS)
    peer = transformers.GPT2LMHeadModel(config).eval()
    matrices = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # their Conv1D keeps (in, out)
    state = {name: w.t() if name.endswith(matrices) else w for name, w in model.state_dict().items()}
    peer.transformer.load_state_dict(state)
    peer = peer.to(device, getattr(torch, dtype))
    if manner == "default+draw":
        from wukong.rollout import draw

        torch.multinomial = lambda p, num_samples: draw(p.float(), torch.rand(len(p), device=p.device)).unsqueeze(1)
    more = {"cache_implementation": "static", "disable_compile": True} if manner == "static" else {}
    prompts = sorted(prompts_of(case), key=len)  # like lengths in a batch: the kinder order

    def run() -> int:
        tokens = 0
        for start in range(0, len(prompts), case.batch):
            some = prompts[start : start + case.batch]
            longest = max(map(len, some))
            ids = torch.tensor([[EOS] * (longest - len(prompt)) + prompt for prompt in some])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in some])
            ids, mask = ids.to(device), mask.to(device)
            with torch.no_grad():
                written = peer.generate(
                    ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=case.new_tokens,
                    pad_token_id=EOS, **more,
                )[:, longest:]  # fmt: skip
            ends = (written == EOS).int()
            tokens += int(((ends.cumsum(1) - ends) == 0).sum())  # up to the first end token, with it
        return tokens

    return run


def worker(case: Case, dtype: str, contender: str, device: str) -> None:
    import torch

    from wukong.model.cpu import kernels
    from wukong.training.compute import compute_for

    compute_for("float32", device)  # the allocator is told to keep memory: for the peer as for us
    torch.manual_seed(0)
    own = contender.startswith("ours")
    with kernels.using(None) if contender == "ours-pytorch" else contextlib.nullcontext():
        run = ours(case, dtype, device) if own else theirs(case, dtype, contender, device)
        for notes in turns():
            notes["tokens"] = run()


# ------------------------------------------------------------------------------------------------ the one that asks


def contender(case: Case, dtype: str, who: str, name: str, directory: Path, options: argparse.Namespace) -> Contender:
    path = [str(ROOT / "src")] if who.startswith("ours") else [options.peer_dir, str(ROOT / "src")]
    command = [sys.executable, __file__, "worker", json.dumps(vars(case)), dtype, who, options.device]
    return Contender(name, command, directory, options.threads, path)


def rates(contender: Contender) -> list[float]:
    return [one["tokens"] / one["seconds"] for one in contender.results]


def spread(contender: Contender) -> list[str]:
    """Median, least and most tokens a second."""
    return [f"{f(rates(contender)):,.0f}" for f in (statistics.median, min, max)]


def operations(case: Case, tokens: float) -> float:
    """Of the matrix products that the real tokens need: 2 FLOPs a weight, the output layer at answers only."""
    size = SIZES[case.size]
    blocks, output = 24 * size["n_layer"] * size["n_embd"] ** 2, 2 * size["vocab_size"] * size["n_embd"]
    return tokens * (blocks + output) + sum(map(len, prompts_of(case))) * blocks


def versus(case_name: str, directory: Path, options: argparse.Namespace) -> None:
    case = CASES[case_name]
    pairs = [(dtype, who) for dtype in options.precisions for who in options.contenders]
    contenders = [contender(case, dtype, who, f"{case_name} {dtype} {who}", directory, options) for dtype, who in pairs]
    compete(contenders, options.rounds)
    speeds = peak_speeds(options.precisions, SIZES[case.size]["n_embd"], options.threads, options.device)
    own = max((one for one in contenders if one.name.endswith("ours")), key=lambda one: statistics.median(rates(one)))
    for (dtype, who), one in zip(pairs, contenders, strict=True):
        ratio = statistics.median(mine / theirs for mine, theirs in zip(rates(own), rates(one), strict=True))
        share = operations(case, one.median("tokens")) / one.median("seconds") / speeds[dtype]
        cells = [case_name, dtype, who, *spread(one), f"{ratio:.2f}", f"{one.median('peak'):.2f}", f"{share:.0%}"]
        print(markdown_row(cells), flush=True)


def flat(directory: Path, options: argparse.Namespace) -> None:
    contenders = [contender(case, "float32", "ours", name, directory, options) for name, case in FLAT.items()]
    compete(contenders, options.rounds)
    rows = []
    for one in contenders:
        pairs = zip(rates(one), rates(contenders[0]), strict=True)
        ratio = statistics.median(mine / first for mine, first in pairs)
        rows.append([one.name, f"{one.median('tokens'):,.0f}", *spread(one), f"{ratio:.2f}"])
    columns = ["ours, float32", "tokens", "tokens/s", "min", "max", "of the first"]
    print(f"\n{markdown_table(columns, rows)}")


def main() -> None:
    parser = new_parser(__doc__)
    speed_options(parser, rounds=3)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, "flat"], default=[*CASES, "flat"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--peer-dir", help="where transformers is installed, or is to be (default: a temporary one)")
    options = parser.parse_args()
    options.precisions = options.precisions or precisions_here(options.device)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        options.peer_dir = options.peer_dir or temporary
        if options.cases != ["flat"]:
            install_transformers(options.peer_dir)
            columns = ["case", "precision", "by", "tokens/s", "min", "max", "our fastest is x times", "GiB"]
            print(markdown_heading([*columns, "of matrix peak"], left=3))
        for name in options.cases:
            if name != "flat":
                versus(name, directory, options)
        if "flat" in options.cases:
            flat(directory, options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(Case(**json.loads(sys.argv[2])), *sys.argv[3:])
    else:
        main()
