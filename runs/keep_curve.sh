#!/usr/bin/env bash
# What does --keep-nodules trade?  bones-small goes on with each weight; ribs left against nodules kept on its test films.
# usage: runs/keep_curve.sh DATA OUT [STEPS]      (about a quarter of an hour of a core for each weight and 250 steps)
# Started again after an interruption, it continues.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$(realpath "$1") out=$2 steps=${3:-250}
mkdir -p "$out"
pairs=("$data/bone_jsrt" "phantom:80@512#1")
for keep in 0 1 3 10; do
  [ -e "$out/keep$keep/result.json" ] || chess-cxr finetune bones cxr-first "${pairs[@]}" --nodules "$data/ct_nodules" \
    --begin-from bones-small --size 512 --crop 256 --decoder tiny --perceptual none --encoder-rate 1 --learning-rate 1e-3 \
    --batch 4 --checkpoint-every 25 --keep-nodules "$keep" --steps "$steps" --out "$out/keep$keep" --quiet
  python "$here/score_bones.py" "$out/keep$keep" "$out/score$keep" --pairs "${pairs[@]}" --jsrt "$data/jsrt" --ct "$data/ct_nodules" > /dev/null
done
python "$here/keep_curve.py" "$out"
