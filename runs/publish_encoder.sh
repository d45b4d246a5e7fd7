#!/usr/bin/env bash
# Publish an encoder folder as weights/NAME, with a card that holds all the tables of the judge on test films.
# usage: runs/publish_encoder.sh ENCODER NAME DATA FOLDER OUT [OTHER=ENCODER …]
#   ENCODER: as `chess-cxr export --without-onnx --licence … --data "$(cat runs/cards/NAME.data.md)"` writes it.
#   FOLDER: what runs/wide_pool.sh DATA FOLDER has filled.  OUT/test: the tables, compared with ImageNet and the others.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
encoder=$1 name=$2 data=$3 folder=$4 out=$5
shift 5
weights=$here/../weights/$name
[ -e "$encoder/config.json" ] || { echo "$encoder is no encoder folder" >&2; exit 2; }
rm -rf "$weights"
cp -r "$encoder" "$weights"
"$here/judge_encoder.sh" "$data" "$folder" "$out" test "$name=$weights" ImageNet=imagenet:tf_efficientnet_lite0 \
  pixels=pixels:32 "$@"
chess-cxr weights card "$weights" --evaluation "$out/test/card_section.md" --limits "$here/cards/limits.md"
