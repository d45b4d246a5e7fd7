#!/usr/bin/env bash
# Judge encoders by linear probe and nearest neighbours: children, adults, tuberculosis, age and sex, nodules.
# usage: runs/judge_encoder.sh DATA FOLDER OUT val|test NAME=ENCODER …
#   FOLDER: what runs/wide_pool.sh DATA FOLDER has filled; features are kept there, so that a second call takes seconds.
#   val: to choose between recipes.  test: to report, with what age, sex and site do to it.
# The first encoder is the one that the others are compared with.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1 folder=$2 out=$3 split=$4
shift 4
export CHESS_CXR_ID_KEY="chess-cxr proof on public films"
if ! python "$here/is_complete.py" "$folder/squares.lance"; then
  python "$here/make_jsrt_crops.py" "$data" "$folder"
  chess-cxr ingest "$folder" --out "$folder/squares.lance" --table "$folder/crops.csv" --site jsrt --no-stratify \
    --val 0.2 --test 0.4 --columns path=file patient=patient labels=nodule --quality.no-quarantine-not-chest
fi
mkdir -p "$out"
{
  printf 'on = "%s"\n' "$split"
  [ "$split" = val ] || echo 'audit = true'
  sed "s#store = \"#store = \"$(realpath "$folder")/#" "$here/judge_suite.toml"
  "$here/list_encoders.sh" "$@"
} > "$out/suite.toml"
rm -rf "$out/$split"
chess-cxr benchmark "$out/suite.toml" --out "$out/$split" --cells "$folder/cells"
