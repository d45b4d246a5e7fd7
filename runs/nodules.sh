#!/usr/bin/env bash
# The whole proof of generated nodules: spread, perceptual networks compared fairly, gain of a classifier and a detector.
# usage: runs/nodules.sh ENCODER JSRT CT_NODULES OUT [OTHER_ENCODER]
# OTHER_ENCODER: a judge of another seed and method than ENCODER.  About a day on 2 cores; started again, it continues.
# STEPS, FLOW_STEPS and WIDTH in the environment make it shorter: 500, 3000 and 8 take about five hours of a core.
# With QUICK=1, and phantom:48@256 as JSRT, it runs through in minutes with networks that have learnt nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
encoder=$1 jsrt=$2 ct=$3 out=$4
judges=("${@:5}")
mkdir -p "$out"
flow_steps=${FLOW_STEPS:-20000} steps=${STEPS:-3000} width=${WIDTH:-16} seeds=(0 1 2) recipes=(0 1 7 8 9) quick=()
if [ -n "${QUICK:-}" ]; then
  flow_steps=2 steps=2 width=2 seeds=(0) recipes=(0) quick=(--quick --judges "$encoder")
fi
flow=(finetune nodules "$encoder" --network flow --width "$width" --perceptual none --learning-rate 1e-3)

# The flow learns from CT nodules in bulk.
[ -e "$out/flow_ct/config.json" ] || chess-cxr "${flow[@]}" "$ct" --steps "$flow_steps" --out "$out/flow_ct"
# Spread over the latent, and pictures of one mask with 16 seeds.
[ -e "$out/spread/spread.csv" ] || python "$here/nodule_spread.py" "$jsrt" "$out/spread" --steps "$steps" --width "$width" --begin-from "$out/flow_ct"
# Perceptual networks, of equal strength stage by stage.
for seed in "${seeds[@]}"; do
  python "$here/nodule_jsrt.py" "$encoder" "$jsrt" "$ct" "$out/perceptual_$seed" --steps "$steps" --width "$width" --seed "$seed" \
    --recipes "${recipes[@]}" --judges "${judges[@]}"
done
# Gain on real films and on phantoms (SYNTHETIC), whose truth is exact.
python "$here/nodule_gain.py" "$encoder" "$jsrt" "$ct" "$out/gain" --steps "$steps" --begin-from "$out/flow_ct" "${quick[@]}"
[ -n "${QUICK:-}" ] || python "$here/nodule_gain.py" "$encoder" phantom:200@256#7 "$ct" "$out/gain_phantom" --steps "$steps" --begin-from "$out/flow_ct"
