#!/bin/sh
# The tables of docs/results/benchmarks.md on the GPU of this machine: benchmarks/speed/gpu.sh docs/results/benchmarks-gpu.md
exec "$(dirname "$0")/tables.sh" cuda "${1:-docs/results/benchmarks-gpu.md}"
