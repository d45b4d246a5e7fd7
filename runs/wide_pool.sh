#!/usr/bin/env bash
# Ingest all 10,984 films of pool_wide.csv.
# usage: runs/wide_pool.sh DATA OUT [OPTION OF chess-cxr ingest ...]
# Started again after an interruption, it continues.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1 out=$2
mkdir -p "$out"
# Public films: a published key makes the hashed ids the same for everybody.
export CHESS_CXR_ID_KEY="chess-cxr proof on public films"
findings=tuberculosis,Atelectasis,Edema,Effusion,Infiltration,Pneumonia
python "$here/make_pool_table.py" "$data" "$out/wide_table.csv" pool_wide.csv
chess-cxr ingest "$data" --out "$out/wide.lance" --table "$out/wide_table.csv" --site pool --no-stratify \
  --columns path=file patient=patient split=split class=label age=age sex=sex view=view labels=one_percent,$findings \
  "${@:3}"
