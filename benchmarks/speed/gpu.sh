#!/bin/sh
# The tables of docs/results/benchmarks.md on the GPU of this machine: benchmarks/speed/gpu.sh docs/benchmarks-gpu.md
exec "$(dirname "$0")/tables.sh" cuda "${1:-docs/benchmarks-gpu.md}"
