#!/usr/bin/env bash
# Train, judge, test and time on one CUDA card; nothing is installed, and nothing but this repository and the pack is read.
# usage: runs/gpu_quarter.sh PACK.parquet OUT MINUTES [OPTION OF gpu_quarter.py go ...]
# Before: python runs/gpu_quarter.py pack STORE PACK.parquet.  Afterwards: python runs/gpu_quarter.py join OUT ENCODER ...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
exec python3 "$here/gpu_quarter.py" go "$1" "$2" --minutes "$3" "${@:4}"
