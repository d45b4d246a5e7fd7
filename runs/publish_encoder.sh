#!/usr/bin/env bash
# Publish the encoder of a run as weights/NAME, with a card that holds all the tables of the judge on test films.
# usage: runs/publish_encoder.sh RUN NAME LICENCE DATA FOLDER OUT [OTHER=ENCODER …]
#   runs/cards/NAME.data.md says what it was trained on, runs/cards/limits.md what it is bad at.
#   FOLDER: what runs/wide_pool.sh DATA FOLDER has filled.  OUT/test: the tables, compared with ImageNet and the others.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
run=$1 name=$2 licence=$3 data=$4 folder=$5 out=$6
shift 6
weights=$here/../weights/$name
rm -rf "$weights"
chess-cxr export "$run" --out "$weights" --licence "$licence" --data "$(cat "$here/cards/$name.data.md")" \
  --without-onnx
"$here/judge_encoder.sh" "$data" "$folder" "$out" test "$name=$weights" ImageNet=imagenet:tf_efficientnet_lite0 \
  pixels=pixels:32 "$@"
chess-cxr weights card "$weights" --evaluation "$out/test/card_section.md" --limits "$here/cards/limits.md"
