"""A pretraining step, ours against transformers' GPT-2, compiled and not.

    python benchmarks/speed/pretrain_step.py --model gpt2 --peer-dir ~/.cache/transformers-4.57.6
    python benchmarks/speed/pretrain_step.py --model nano --rows 8 --rounds 20

The same random weights, tokens, precision, threads and allocator settings on both sides: forward, backward, clipping
to norm 1 and a step of fused AdamW. Ours is `wukong pretrain`'s own step. nanoGPT is no installable package; its model
is the same arithmetic as transformers' with SDPA, which stands here for both. Contenders take turns; the first turn of
each, in which a compiled one compiles, does not count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import ROOT, new_parser, speed_options
from shared.peers import install_transformers
from shared.table import markdown_table
from shared.turns import Contender, compete, peak_speeds, precisions_here, turns

VOCABULARY = {"gpt2": 50257}
MANNERS = ("eager", "compiled")


def config_of(size: str):
    from wukong.model.gpt2 import PRESETS, GPT2Config

    return GPT2Config(vocab_size=VOCABULARY.get(size, 4096), **PRESETS[size])


def tokens_of(size: str, rows: int, context: int):
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY.get(size, 4096), (rows, context + 1), generator=generator)


def ours(size: str, precision: str, manner: str, rows: int, context: int, device: str):
    """A function that takes one step."""
    import torch

    from wukong.model.gpt2 import GPT2
    from wukong.scoring import language_model_loss
    from wukong.stages.pretrain import PretrainOptions
    from wukong.training.session import Session

    torch.manual_seed(0)
    model = GPT2(config_of(size))
    if manner == "compiled":
        model.compile()
    options = PretrainOptions(
        data=Path("-"),
        out=Path(tempfile.mkdtemp()),
        precision=precision,
        device=device,
        tensorboard=False,
        checkpoint_seconds=1e9,
    )
    session = Session(options, {"model": model}, 10**6, "pretrain", lr=options.lr)
    ids = tokens_of(size, rows, context).to(device)

    def step() -> None:
        loss = language_model_loss(model, ids, session.compute) / (rows * context)
        session.backward(loss)
        loss.item()
        session.optimizer_step()

    return step


def theirs(size: str, precision: str, manner: str, rows: int, context: int, device: str):
    import torch
    import transformers

    from wukong.training.compute import compute_for

    compute = compute_for(precision, device)
    own = config_of(size)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=own.vocab_size, n_positions=own.n_positions, n_embd=own.n_embd, n_layer=own.n_layer,
        n_head=own.n_head, attn_implementation="sdpa", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).to(device).train()
    if manner == "compiled":
        model.compile()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    ids = tokens_of(size, rows, context).to(device)

    def step() -> None:
        with compute.autocast():
            logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def arithmetic(size: str, rows: int, context: int) -> float:
    """Floating-point operations of the matrix products: 6 a weight and token, attention's own beside them."""
    config = config_of(size)
    weights = 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd
    attention = 12 * config.n_layer * config.n_embd * context / 2  # causal: half of all pairs
    return rows * context * (6 * weights + attention)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", default="gpt2", help="a preset")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--manners", nargs="+", default=MANNERS, choices=MANNERS)
    speed_options(parser, rounds=5)
    parser.add_argument("--peer-dir", help="where transformers is installed, or is to be (default: a temporary one)")
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        who, size, precision, manner, rows, context, device = given.worker
        step = {"wukong": ours, "transformers": theirs}[who](size, precision, manner, int(rows), int(context), device)
        for _ in turns():
            step()
        return
    given.precisions = given.precisions or precisions_here(given.device)
    with tempfile.TemporaryDirectory() as temporary:
        directory, peer_dir = Path(temporary), given.peer_dir or temporary
        install_transformers(peer_dir)
        contenders = []
        for precision in given.precisions:
            for who in ("wukong", "transformers"):
                for manner in given.manners:
                    worker = [who, given.model, precision, manner, str(given.rows), str(given.context), given.device]
                    path = [str(ROOT / "src")] if who == "wukong" else [peer_dir, str(ROOT / "src")]
                    command = [sys.executable, __file__, "--worker", *worker]
                    contenders.append(Contender(f"{who} {precision} {manner}", command, directory, given.threads, path))
        compete(contenders, given.rounds)
    speeds = peak_speeds(given.precisions, config_of(given.model).n_embd, given.threads, given.device)
    print(f"{given.model}, {given.rows} x {given.context} tokens, {given.threads} threads")
    print("; ".join(f"{name}: {speed / 1e9:,.0f} GFLOP/s" for name, speed in speeds.items()))
    tokens = given.rows * given.context
    best = min(one.median("seconds") for one in contenders if one.name.startswith("transformers"))
    rows = []
    for one in contenders:
        rates = [tokens / result["seconds"] for result in one.results]
        share = arithmetic(given.model, given.rows, given.context) / one.median("seconds") / speeds[one.name.split()[1]]
        cells = [f"{rate:,.0f}" for rate in (statistics.median(rates), min(rates), max(rates))]
        cells += [f"{one.median('peak'):.2f}", f"{share:.0%}", f"{best / one.median('seconds'):.2f}"]
        rows.append([one.name, *cells])
    columns = ["", "tokens/s", "least", "most", "GiB", "of matrix peak", "of the fastest peer"]
    print(f"\n{markdown_table(columns, rows)}")


if __name__ == "__main__":
    main()
