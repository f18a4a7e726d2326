"""The decoder under random arrivals and departures: no failure, and every response is what its prompt gives alone.

    python benchmarks/stress/decoder.py
    python benchmarks/stress/decoder.py --requests 500 --family llama --path "native float32" --sanitize ""

On each decoding path that this machine has, a small random model of each family answers 10,000 requests with random
prompts, limits, temperatures and truncation. At every step so many of them arrive that 75 to 100 % of the batch's rows
are occupied; some are cancelled on their way; now and then the batch's size changes. Our kernels are compiled with
AddressSanitizer and UndefinedBehaviorSanitizer, which end the process at the first error. Afterwards every request is
read again alone, as a whole: each log-prob must be the same within rounding, and each token the one that the request's
random number selects. Seeded; one to two minutes a path on one core. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser

from wukong.model.config import GPT2Config, LlamaConfig
from wukong.model.cpu import kernels
from wukong.model.cpu.native import NativeModel
from wukong.model.cpu.packed import PackedGPT2, can_pack
from wukong.model.gpt2 import GPT2
from wukong.model.language_model import LanguageModel
from wukong.model.llama import Llama
from wukong.rollout import Continuation, Decoder

TOKENS = 70
GPT2_CONFIG = GPT2Config(vocab_size=TOKENS, n_positions=96, n_embd=32, n_layer=2, n_head=2)
LLAMA_CONFIG = LlamaConfig(
    vocab_size=TOKENS, n_positions=96, n_embd=32, n_layer=2, n_head=4, n_kv_head=2, head_width=16, n_inner=72,
    tied=False, qk_norm=True,
)  # fmt: skip
FAMILIES: dict[str, Callable[[], LanguageModel]] = {
    "gpt2": lambda: GPT2(GPT2_CONFIG),
    "llama": lambda: Llama(LLAMA_CONFIG),
}
PATHS = [f"{form} {dtype}" for form in ("pytorch", "packed", "native") for dtype in ("float32", "bfloat16")]
EOS = 0
SANITIZERS = "address,undefined"
NO_KERNELS = "our kernels need Linux, a C++ compiler and AVX2"
NO_PACKED = "this family has no packed form"
NO_BFLOAT16 = "this processor has no bfloat16 instructions; float32 takes the same path"


def random_model(family: str) -> LanguageModel:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        model.final_norm.get_parameter("weight").fill_(0.6)
    return model


def forms(family: str) -> dict[str, Callable[[], LanguageModel] | str]:
    """The model in the form of each path, or why that path is not to be had here."""
    model = random_model(family)
    bfloat16, own = can_pack(torch.device("cpu"), torch.bfloat16), kernels.library() is not None
    packs = isinstance(model, GPT2)
    found: list[Callable[[], LanguageModel] | str] = [
        lambda: model,
        lambda: random_model(family).bfloat16(),
        (lambda: PackedGPT2(model, torch.float32)) if packs else NO_PACKED,
        NO_PACKED if not packs else (lambda: PackedGPT2(model)) if bfloat16 else NO_BFLOAT16,
        (lambda: NativeModel(model, torch.float32)) if own else NO_KERNELS,
        (lambda: NativeModel(model, torch.bfloat16)) if own else NO_KERNELS,
    ]
    return dict(zip(PATHS, found, strict=True))


# ------------------------------------------------------------------------------------------------------- the traffic


@dataclass
class Traffic:
    """What happened on a path."""

    answered: list[Continuation] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    cancelled: int = 0
    steps: int = 0
    occupancy: list[float] = field(default_factory=list)


def request(random: np.random.Generator) -> Continuation:
    prompt = random.integers(1, TOKENS, int(random.integers(1, 40))).tolist()
    one = Continuation(prompt, int(random.integers(1, 25)), seed=int(random.integers(1 << 40)))
    manner = random.random()
    if manner < 0.3:
        one.temperature = float(random.uniform(0.3, 1.5))
    elif manner < 0.35:
        one.temperature = 0.0
    elif manner < 0.36:  # rare: one of them in a batch takes the others off the kernel that draws
        one.top_k = int(random.integers(1, 40))
    return one


def serve(model: LanguageModel, count: int, random: np.random.Generator) -> Traffic:
    """Decodes `count` requests that come and go."""
    traffic, decoder, capacity = Traffic(), Decoder(model, EOS), 20
    arrived = 0
    being_written: list[Continuation] = []
    while arrived < count or being_written:
        if random.random() < 1 / 200:
            capacity = int(random.integers(4, 25))
        wanted = int(random.integers(-(-3 * capacity // 4), capacity + 1))
        new = [request(random) for _ in range(min(wanted - len(being_written), count - arrived))]
        arrived += len(new)
        being_written += new
        cancelled = [one for one in being_written if random.random() < 1 / 500]
        try:
            decoder.admit(new)
            decoder.drop(cancelled)
            together = len(decoder)
            decoder.step()
        except Exception as error:  # a server would lose these requests, and go on with a new decoder
            traffic.errors += [f"{type(error).__name__}: {str(error).splitlines()[0]}"] * len(being_written)
            being_written, decoder = [], Decoder(model, EOS)
            continue
        traffic.steps += 1
        traffic.cancelled += len(cancelled)
        gone = set(map(id, cancelled))
        traffic.answered += [one for one in being_written if one.over or id(one) in gone]
        being_written = [one for one in being_written if not one.over and id(one) not in gone]
        if arrived < count and decoder._rows:
            traffic.occupancy.append(together / len(decoder._rows))
    return traffic


# ---------------------------------------------------------------------------------------------- each request by itself


@torch.inference_mode()
def logits_alone(model: LanguageModel, one: Continuation) -> torch.Tensor:
    """The logits before each token of the response, read without company: (R, V) float64."""
    hidden = model(torch.tensor([[*one.prompt, *one.written.ids]]))[0]
    return model.logits(hidden[len(one.prompt) - 1 : -1]).double()


def apart(model: LanguageModel, one: Continuation) -> tuple[float, float]:
    """How far a response is from what its prompt gives alone: the largest difference of a log-prob, and how far outside
    its token's interval of the cumulative distribution a random number lies."""
    if not one.written.ids:
        return 0.0, 0.0
    logits, tokens = logits_alone(model, one) / (one.temperature or 1.0), torch.tensor(one.written.ids)[:, None]
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, tokens).squeeze(1)
    difference = float((torch.tensor(one.written.logprobs, dtype=torch.float64) - chosen).abs().max())
    if one.temperature == 0 or one.top_k:  # how much more probable what had to be taken is than what was
        worst = logprobs.topk(one.top_k or 1).values[:, -1]
        return difference, max(0.0, float((worst.exp() - chosen.exp()).max()))
    behind = logprobs.exp().cumsum(-1).gather(1, tokens).squeeze(1)
    u = torch.from_numpy(one.noise[: len(tokens)]).double()
    return difference, max(0.0, float(torch.maximum(behind - chosen.exp() - u, u - behind).max()))


def run(name: str, model: LanguageModel, count: int, seed: int) -> bool:
    """Prints a path's line; whether nothing failed."""
    begin = time.monotonic()
    traffic = serve(model, count, np.random.default_rng(seed))
    tolerance = 1e-4 if "float32" in name.split() else 0.1
    differences = [apart(model, one) for one in traffic.answered]
    wrong = sum(max(pair) > tolerance for pair in differences)
    tokens, largest = sum(len(one.written.ids) for one in traffic.answered), np.max(differences, axis=0, initial=0)
    occupancy = ", ".join(f"{100 * f(traffic.occupancy):.0f}" for f in (np.min, np.mean, np.max))
    print(
        f"{name}: {len(traffic.answered):,} requests ({traffic.cancelled:,} cancelled), {tokens:,} tokens, "
        f"{traffic.steps:,} steps, occupancy {occupancy} % (least, mean, most); {len(traffic.errors)} failed, {wrong} "
        f"differ from the prompt alone by more than {tolerance:g} (largest: log-prob {largest[0]:.2g}, draw "
        f"{largest[1]:.2g}); {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    for error in sorted(set(traffic.errors)):
        print(f"  {traffic.errors.count(error)} x {error}", flush=True)
    return not traffic.errors and not wrong and len(traffic.answered) == count


def under_sanitizers(sanitizers: str) -> None:
    """Starts this script once more with kernels that are compiled so; the sanitizer's library has to be there first."""
    compiler = os.environ.get("CXX", "c++")
    found = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    # Python does not free everything at its end, and OpenMP's threads need more than the default to be followed.
    own = {"WUKONG_SANITIZE": sanitizers, "LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **own})


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--family", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--path", nargs="*", choices=PATHS, default=PATHS)
    parser.add_argument("--sanitize", default=SANITIZERS, help="GCC's -fsanitize; empty for none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.sanitize and "WUKONG_SANITIZE" not in os.environ:
        under_sanitizers(options.sanitize)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    library = kernels.library()
    with_kernels = f"with {os.environ.get('WUKONG_SANITIZE') or 'no sanitizer'}" if library else "not to be had"
    print(f"PyTorch {torch.__version__}, our kernels {with_kernels}", flush=True)
    fine = True
    for family in options.family:
        for name, form in forms(family).items():
            if name not in options.path:
                continue
            if isinstance(form, str):
                print(f"{family} {name}: not run here ({form})", flush=True)
            else:
                fine = run(f"{family} {name}", form(), options.requests, options.seed) and fine
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
