"""Our own kernels for a CPU beside PyTorch's, in turn: a decoding step, a draw, GELU, and a pass of training with it.

    python benchmarks/speed/cpu_kernels.py
    MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/speed/cpu_kernels.py --processor haswell

Medians and least of the turns in milliseconds, and the median of the turns' ratios. PyTorch computes in float32 with
float32 weights throughout. The second command shows what a processor without AVX-512 has of them, as far as one with it
can.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from shared.command_line import new_parser
from shared.machine import machine
from shared.table import markdown_heading, markdown_row

from wukong import rollout
from wukong.model import gpt2
from wukong.model.cpu import kernels
from wukong.model.cpu.native import NativeModel
from wukong.model.families import PRESET_CONFIGS, new_model
from wukong.model.language_model import LanguageModel
from wukong.training.compute import compute_for

VOCABULARIES = {"nano": 4096, "micro": 4096, "gpt2": 50257, "llama-124m": 49152}
Work = Callable[[], object]


def row(what: str, own: Work, theirs: Work, turns: int) -> None:
    """A line of the table; the first two turns of each are a warm-up."""
    milliseconds: dict[Work, list[float]] = {own: [], theirs: []}
    for _ in range(turns + 2):
        for work, times in milliseconds.items():
            begin = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - begin))
    mine, other = (times[2:] for times in milliseconds.values())
    ratio = statistics.median(b / a for a, b in zip(mine, other, strict=True))
    figures = (statistics.median(mine), min(mine), statistics.median(other), min(other))
    print(markdown_row([what, *(f"{figure:.3g}" for figure in figures), f"{ratio:.2f}"]), flush=True)


def model_of(size: str) -> LanguageModel:
    torch.manual_seed(0)
    return new_model(replace(PRESET_CONFIGS[size], vocab_size=VOCABULARIES[size]))


@torch.inference_mode()
def decoding(size: str, rows: int, dtype: torch.dtype) -> None:
    """A step from 64 cached tokens: all layers, and the logits."""
    model = model_of(size).eval()

    def step(form: LanguageModel) -> Work:
        ids = torch.zeros(rows, 64, dtype=torch.int64)
        cache = form.empty_cache(rows, 65)
        form(ids, cache=cache)
        cache.advance(torch.full((rows,), 64), 64)
        return lambda: form.logits(form(ids[:, :1], cache=cache)[:, 0])

    name = f"decoding step, {size}, {rows} rows, weights in {str(dtype).removeprefix('torch.')}"
    row(name, step(NativeModel(model, dtype)), step(model), 30)


def drawing(rows: int, vocabulary: int, library) -> None:
    logits, u = torch.randn(rows, vocabulary), torch.rand(rows)

    def theirs() -> object:
        weights = (logits - logits.amax(-1, keepdim=True)).exp_()
        return rollout.draw(weights, u), weights.sum(-1)

    row(f"draw, {rows} rows of {vocabulary:,}", lambda: kernels.draw(library, logits, torch.ones(rows), u), theirs, 30)


def activation(rows: int, columns: int) -> None:
    x, gradient = torch.randn(rows, columns, requires_grad=True), torch.randn(rows, columns)
    forms = (kernels.gelu, lambda x: F.gelu(x, approximate="tanh"))
    row(f"GELU, {rows:,} x {columns:,}", *(lambda form=form: form(x.detach()) for form in forms), 30)
    results = [form(x) for form in forms]
    row(
        f"its gradient, {rows:,} x {columns:,}",
        *(lambda y=y: torch.autograd.grad(y, x, gradient, retain_graph=True) for y in results),
        30,
    )


def training(size: str, rows: int, length: int) -> None:
    """Forward and backward through the layers, with our GELU and with PyTorch's."""
    model, ids = model_of(size), torch.randint(0, 4096, (rows, length))

    def a_pass(form: Callable[[torch.Tensor], torch.Tensor]) -> Work:
        def work() -> None:
            gpt2.gelu = form
            model(ids).square().mean().backward()

        return work

    theirs = a_pass(lambda x: F.gelu(x, approximate="tanh"))
    row(f"training pass, {size}, {rows} x {length} tokens", a_pass(kernels.gelu), theirs, 12)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--processor", default="native", help="for which the kernels are compiled (GCC's -march)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    compute_for("float32", "cpu")
    torch.set_num_threads(options.threads)
    library = kernels.load(os.environ.get("CXX", "c++"), options.processor)
    print(f"{machine()}, {options.threads} threads, kernels for {options.processor}\n")
    print(markdown_heading(["milliseconds", "ours", "least", "PyTorch's", "least", "PyTorch's takes"]))
    with kernels.using(library):
        for size, rows in (("micro", 64), *((size, rows) for size in ("gpt2", "llama-124m") for rows in (1, 16, 64))):
            for dtype in (torch.float32, torch.bfloat16):
                decoding(size, rows, dtype)
        drawing(64, 4096, library)
        drawing(16, 50257, library)
        activation(64, 1024)
        activation(2048, 3072)
        for size, rows, length in (("nano", 16, 64), ("micro", 32, 64), ("gpt2", 4, 128)):
            training(size, rows, length)


if __name__ == "__main__":
    main()
