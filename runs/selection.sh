#!/usr/bin/env bash
# Is pre-training on a selected third as good as on all films, at equal CPU seconds?
# usage: runs/selection.sh STORE ENCODER OUT [OPTION OF trials.py ...]
#   STORE must hold the features of ENCODER: chess-cxr embed ENCODER STORE
# Trains on all films, on a third by k-means++, by core-set and at random, each for the same CPU seconds on one thread.
# Judge the encoders with runs/judge_encoder.sh.  Started again after an interruption, it continues.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
store=$1 encoder=$2 out=$3
shift 3
mkdir -p "$out"
films=$(python -c "
import sys
from chess_cxr.store import open_store
print(open_store(sys.argv[1]).films['split'].isin(['train', '']).sum() // 3)" "$store")
for by in kmeans++ core-set random; do
  list=$out/${by/++/pp}.csv
  [ -e "$list" ] || chess-cxr select "$store" --encoder "$encoder" --films "$films" --by "$by" --out "$list" --quiet
done
{
  printf '[trials.all]\nfilms = ""\n'
  for by in kmeanspp core-set random; do
    printf '[trials.%s]\nfilms = "%s"\n' "$by" "$(realpath "$out/$by.csv")"
  done
} > "$out/trials.toml"
python "$here/trials.py" "$out/trials.toml" "$store" "$out" "$@"
