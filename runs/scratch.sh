#!/usr/bin/env bash
# The paper's comparison: all weights trained on 1 % of kermany3's labels, from an encoder, from ImageNet, from scratch.
# usage: [DRAWS=5] [WORKERS=2] runs/scratch.sh FOLDER OUT NAME=ENCODER [OTHER=ENCODER …]
#   FOLDER: what runs/wide_pool.sh DATA FOLDER has filled.  Started again after an interruption, it continues.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath "$1") out=$2
shift 2
{
  cat <<TOML
draws = ${DRAWS:-5}
seed = 0
replicates = 2000
floors = []
[tasks.kermany3]
store = "$folder/wide.lance"
labels = ["bacteria", "normal", "virus"]
first_draw = "one_percent"
fractions = []
film_counts = [31]
heads = ["full"]
TOML
  "$here/list_encoders.sh" "$@"
  printf 'scratch = "random"\nImageNet = "size=96:imagenet:tf_efficientnet_lite0"\n'
} > "$out.toml"
chess-cxr benchmark "$out.toml" --out "$out" --cells "$out.cells" --no-pictures --workers "${WORKERS:-2}"
