"""Where the time of each stage goes: a short piece of every stage of a finished run, under PyTorch's profiler.

    python benchmarks/speed/profile_stages.py runs/kitchen

Takes the options of the run's recipe.yaml and its models and data, does a small part of each stage into a temporary
directory and prints, for each, what share of the wall time the kinds of operations took. What is left is Python, the
reading of data, and waiting. The profiler itself costs time at every operation, most where operations are small.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser, run_argument
from shared.finished_run import recipe_steps
from shared.table import markdown_table

from wukong.registry import STAGES

PIECES: dict[str, dict[str, Any]] = {
    "pretrain": {"tokens": 40_000, "eval_tokens": 2048, "eval_every": 0, "sample_prompts": []},
    "sft": {"epochs": 0.1, "eval_every": 0},
    "sample": {"limit": 32},
    "reward": {"epochs": 0.1, "eval_every": 0},
    "ppo": {"episodes": 128},
    "evaluate": {"limit": 24, "text": None},
}
"""Stage -> the options that make it short."""

KINDS = {
    "matrix products": ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::linear", "mkldnn::"),
    "attention": ("attention", "flash"),
    "optimiser": ("_fused_adamw_", "_foreach", "linalg_vector_norm"),
    "normalisation": ("layer_norm",),
    "activation": ("gelu",),
    "softmax and draws": ("softmax", "exp", "cumsum", "searchsorted", "amax", "argmax", "logsumexp", "rand"),
    "copies and indexing": ("copy", "index", "gather", "scatter", "cat", "embedding", "fill", "clone", "zero", "slice"),
}


def kind_of(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other operations")


def shares(stage: str, options: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """Seconds, and kind of operation -> share of them."""
    options_class, run = STAGES[stage].load()
    validated = options_class.model_validate(options)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        begin = time.perf_counter()
        run(validated)
        seconds = time.perf_counter() - begin
    total: Counter[str] = Counter()
    for event in found.key_averages():
        total[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return seconds, {kind: took / seconds for kind, took in total.items()}


def main() -> None:
    parser = new_parser(__doc__)
    run_argument(parser)
    parser.add_argument("--stages", nargs="+", choices=PIECES, default=list(PIECES))
    given = parser.parse_args()
    steps = recipe_steps(given.run)
    columns = [*KINDS, "other operations"]
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for stage in given.stages:
            if stage in steps:
                out = Path(directory) / (f"{stage}.jsonl" if stage == "sample" else stage)
                rows.append((stage, *shares(stage, steps[stage] | PIECES[stage] | {"out": str(out)})))
    lines = [
        [
            stage,
            f"{seconds:.1f}",
            *(f"{found.get(kind, 0):.0%}" for kind in columns),
            f"{max(0, 1 - sum(found.values())):.0%}",
        ]
        for stage, seconds, found in rows
    ]
    print(markdown_table(["stage", "seconds", *columns, "Python and the rest"], lines))


if __name__ == "__main__":
    main()
