#!/bin/sh
# Runs the benchmarks of docs/benchmarks.md on the GPU of this machine and writes their tables into one file.
#
#   benchmarks/gpu.sh docs/benchmarks-gpu.md
#
# PYTHON names the interpreter with wukong in it; transformers and TRL go into PEERS, environments of their own.
set -eu
out=${1:?name the file that the tables go to, such as docs/benchmarks-gpu.md}
python=${PYTHON:-.venv/bin/python}
peers=${PEERS:-$HOME/.cache/wukong-benchmarks}
here=$(dirname "$0")
mkdir -p "$peers" "$(dirname "$out")"

table() {
    printf '\n## %s\n\n    python benchmarks/%s\n\n' "$1" "$2"
    # shellcheck disable=SC2086  # the options are words
    "$python" "$here"/$2 2>"$peers/last.log" || { tail -n 20 "$peers/last.log" >&2; exit 1; }
}

{
    echo '# On a GPU'
    echo
    "$python" -c 'import sys, torch
sys.path.insert(0, sys.argv[1])
from road import machine
print(torch.cuda.get_device_name(), "CUDA", torch.version.cuda, machine(), sep="; ")' "$here"
    table Sampling "sampling.py --device cuda --peer-dir $peers/transformers"
    table 'A pretraining step' "pretrain_step.py --device cuda --peer-dir $peers/transformers"
    table 'A PPO step' "ppo_step.py --device cuda --trl $peers/trl --precisions float32 bfloat16 --value-models separate shared"
} >"$out.part"
mv "$out.part" "$out"
