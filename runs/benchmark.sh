#!/usr/bin/env bash
# The benchmark on real films: our encoder, ImageNet's, bare pixels and an untrained network on four tasks.
# usage: runs/benchmark.sh DATA OUT      (OUT: the folder that runs/real_films.sh DATA OUT has filled)
# Started again after an interruption, it continues.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1 out=$2
# The key of runs/real_films.sh: a film has the same hash in both stores, and films the encoder has seen are told.
export CHESS_CXR_ID_KEY="chess-cxr proof on public films"

if ! python "$here/is_complete.py" "$out/jsrt.lance"; then
  python "$here/make_jsrt_table.py" "$data" "$out/jsrt_table.csv"
  chess-cxr ingest "$data" --out "$out/jsrt.lance" --table "$out/jsrt_table.csv" --site jsrt --val 0.1 --test 0.4 \
    --columns path=file patient=patient age=age sex=sex view=view labels=nodule,malignant | tee "$out/jsrt_ingest.txt"
fi
cp "$here/benchmark_suite.toml" "$out/benchmark_suite.toml"
[ -e "$out/benchmark" ] || chess-cxr benchmark "$out/benchmark_suite.toml" --out "$out/benchmark" "${@:3}"
