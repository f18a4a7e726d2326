#!/bin/sh
# Runs our speed against every peer's on this machine and writes the tables into one file, which
# docs/results/benchmarks.md explains. On two cores it takes about twenty minutes once the peers are installed, and 20 GB of memory.
#
#   benchmarks/speed/tables.sh cpu docs/results/benchmarks-cpu.md     the same as: make bench
#   benchmarks/speed/tables.sh cuda docs/results/benchmarks-gpu.md
#
# PYTHON names the interpreter with wukong in it; transformers and TRL go into PEERS, environments of their own.
set -eu
device=${1:?cpu or cuda}
out=${2:?name the file that the tables go to, such as docs/results/benchmarks-cpu.md}
python=${PYTHON:-.venv/bin/python}
peers=${PEERS:-$HOME/.cache/wukong-benchmarks}
here=$(dirname "$0")
mkdir -p "$peers" "$(dirname "$out")"

# title, script, its options, and options that only say where things are
table() {
    printf '\n## %s\n\n    python benchmarks/speed/%s %s\n\n' "$1" "$2" "$3"
    printf '%s %s' "$2" "$3" >&2
    since=$(date +%s)
    # shellcheck disable=SC2086  # the options are words
    "$python" "$here/$2" $3 $4 2>"$peers/last.log" || { tail -n 20 "$peers/last.log" >&2; exit 1; }
    echo ": $(($(date +%s) - since)) s" >&2
}

begin=$(date +%s)
{
    echo "# Speed on a $(echo "$device" | sed 's/cpu/CPU/; s/cuda/GPU/')"
    echo
    echo "Tables of one measurement, as the scripts wrote them; the page Speed (benchmarks.md) explains them."
    echo
    "$python" - "$here/.." "$device" <<'EOF'
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from shared.machine import machine
names = [torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}"] if sys.argv[2] == "cuda" else []
print(*names, machine(), f"{time.strftime('%Y-%m-%d')}. Written by `benchmarks/speed/tables.sh {sys.argv[2]}`.", sep="; ")
EOF
    table Sampling sampling.py "--cases gpt2-16 micro-64 --precisions float32 bfloat16 --contenders ours default default+draw --rounds 2 --device $device" "--peer-dir $peers/transformers"
    table 'Sampling, more at once' sampling.py "--cases gpt2-64 micro-ends --contenders ours default --rounds 2 --device $device" "--peer-dir $peers/transformers"
    table 'Sampling, the cost of a token' sampling.py "--cases flat --rounds 2 --device $device" ""
    table 'A pretraining step' pretrain_step.py "--rounds 2 --device $device" "--peer-dir $peers/transformers"
    table 'A PPO step, 4 layers' ppo_step.py "--model micro --value-models separate shared --rounds 3 --device $device" "--trl $peers/trl"
    table 'A PPO step, GPT-2 124M' ppo_step.py "--value-models separate --rounds 1 --device $device" "--trl $peers/trl"
    if [ "$device" = cpu ]; then
        table 'Two processes on two cores' scaling.py "--rounds 1" ""
    fi
} >"$out.part"
mv "$out.part" "$out"
echo "$out: written in $((($(date +%s) - begin) / 60)) minutes"
