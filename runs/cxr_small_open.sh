#!/usr/bin/env bash
# Pre-train cxr-small-open: the recipe of cxr-small on films whose terms allow any use with attribution.
# usage: runs/cxr_small_open.sh STORE OUT [OPTION OF chess-cxr pretrain ...]
#   STORE: wide.lance of runs/wide_pool.sh.  Taken are NIH's films (RSNA's are some of them) and Shenzhen's;
#   not Kermany's, CXNet's and the COVID films of nih_covid, whose sources state no licence or several.
# Started again after an interruption, it continues.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
store=$1 out=$2
shift 2
python -c "
import sys
from chess_cxr.store import open_store
films = open_store(sys.argv[1]).films
nih = (films['site'] == 'nih_covid') & films['Pneumonia'].notna()
films[nih | films['site'].isin(['nih_adult', 'rsna_normal', 'tuberculosis'])][['uid']].to_csv(sys.argv[2], index=False)
" "$store" "$out.films.csv"
chess-cxr pretrain "$store" --out "$out" --config "$here/configs/cxr_small_open.json" --films "$out.films.csv" \
  --begin-from imagenet:tf_efficientnet_lite0 "$@"
