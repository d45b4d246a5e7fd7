#!/usr/bin/env bash
# Build the one file of regl-scatterplot that the map uses, with the licences of all that is in it.
# usage: runs/vendor_regl.sh [VERSION]          needs npm and the network; the result is committed
set -euo pipefail
page=$(cd "$(dirname "$0")/../src/chess_cxr/search/map_page" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init -y >/dev/null
npm install --silent "regl-scatterplot@${1:-1.16.0}" esbuild@0
echo 'export { default } from "regl-scatterplot";' > entry.js
npx esbuild entry.js --bundle --minify --format=iife --global-name=reglScatterplot --legal-comments=eof \
  --outfile="$page/regl-scatterplot.js"
for licence in node_modules/{regl-scatterplot,regl,regl-line,pub-sub-es,gl-matrix,earcut,dom-2d-camera,camera-2d-simple,@flekschas/utils}/LICENSE*; do
  printf '%s\n\n' "--- $(dirname "${licence#node_modules/}")"
  cat "$licence"
  echo
done > "$page/regl-scatterplot.licences.txt"
