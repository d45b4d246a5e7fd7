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
labels=one_percent,tuberculosis,female,aged_50,nodule_or_mass,Atelectasis,Cardiomegaly,Consolidation,Edema,Effusion,Emphysema
labels+=,Fibrosis,Hernia,Infiltration,Mass,Nodule,Pleural_Thickening,Pneumonia,Pneumothorax,No_Finding
python "$here/make_pool_table.py" "$data" "$out/wide_table.csv" pool_wide.csv
chess-cxr ingest "$data" --out "$out/wide.lance" --table "$out/wide_table.csv" --site pool --no-stratify --val 0.1 --test 0.3 \
  --columns path=file patient=patient site=set split=split class=label age=age sex=sex view=view "labels=$labels" \
  "${@:3}"
