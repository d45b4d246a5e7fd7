#!/usr/bin/env bash
# The proof of the benchmark: the paper's four kinds of task, floors, audit and sites, on public films.
# usage: runs/paper.sh DATA FOLDER OUT NAME=ENCODER …        (TINY=1 in the environment: the same, much smaller)
#   FOLDER: what runs/wide_pool.sh DATA FOLDER has filled; it is only read.  Cells are kept in OUT.cells.
# The first encoder is the one that the others are compared with; scratch and ImageNet are added.
# Started again after an interruption, it continues.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$(realpath "$1") folder=$(realpath "$2") out=$3
shift 3
export CHESS_CXR_ID_KEY="chess-cxr proof on public films"
suite=$out.suite.toml
{
  sed -e "s#FIRST#${1%%=*}#" -e "s#store = \"#store = \"$folder/#" -e "s#places = \[\"#places = [\"$data/#" "$here/paper_suite.toml"
  "$here/list_encoders.sh" "$@"
  printf 'scratch = "random"\nImageNet = "imagenet"\n"ImageNet 96 px" = "size=96:imagenet:tf_efficientnet_lite0"\n'
} > "$suite"
if [ -n "${TINY:-}" ]; then
  awk '/^\[/ { skip = /kermany3|nih_six|tuberculosis/ } !skip && !/^ImageNet =/' "$suite" > "$suite.cut"
  sed -e 's/^draws = .*/draws = 2/' -e 's/^replicates = .*/replicates = 50/' -e 's/^first_draw.*//' \
    -e 's/^fractions = .*/film_counts = [24]\nfractions = []/' -e 's/^steps = .*/steps = 2/' \
    -e 's/ steps = [0-9]*/ steps = 3/' -e 's/size = 256, crop = 128/size = 64, crop = 64/' -e 's/film_size = 256/film_size = 128/' \
    -e 's/, "ImageNet"\]/]/' \
    "$suite.cut" > "$suite"
  rm "$suite.cut"
fi
[ -e "$out" ] || chess-cxr benchmark "$suite" --out "$out" --cells "$out.cells"
[ -e "$out.cards" ] || chess-cxr benchmark card "$suite" --out "$out.cards"
