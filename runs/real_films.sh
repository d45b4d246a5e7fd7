#!/usr/bin/env bash
# The proof on real films: ingest the pool, pre-train on it, compare the encoder with others on two tasks.
# usage: runs/real_films.sh DATA OUT      (DATA: the folder that holds pool.csv; about 90 minutes on 2 cores)
# Started again after an interruption, it continues.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1 out=$2
mkdir -p "$out"
# Public films: a published key makes the hashed ids, and so the tables, the same for everybody.
export CHESS_CXR_ID_KEY="chess-cxr proof on public films"
findings=Atelectasis,Edema,Effusion,Infiltration,Pneumonia
licence="research only: most of the training films state no licence"
films=$(cat <<'CARD'
The train split of a pool of 5,960 public chest radiographs, about 68 % of them children. Sources:

- kermany3, 4,081 films: szallik/Neural_networks_binary_classification @13b5ee8, no licence stated (upstream: Kermany et
  al. 2018). Its val and test patients were left out.
- nih_covid, 855 films: muhammedtalo/COVID-19 @ee3e2cf, no licence stated (upstream: NIH ChestX-ray14 and
  ieee8023/covid-chestxray-dataset). The val and test patients among its NIH films were left out.
- covid_cxnet, 825 films: armiro/COVID-CXNet @3ade488, MIT licence, images CC BY 4.0 by its README.
- jsrt, 199 films: AnishHota/JSRT-Segmentation @047d319, no licence stated (upstream: JSRT).
CARD
)

if ! python "$here/is_complete.py" "$out/pool.lance"; then
  python "$here/make_pool_table.py" "$data" "$out/pool_table.csv"
  chess-cxr ingest "$data" --out "$out/pool.lance" --table "$out/pool_table.csv" --site pool --no-stratify --val 0.1 --test 0.3 \
    --columns path=file patient=patient split=split class=label age=age sex=sex view=view labels=one_percent,$findings \
    | tee "$out/ingest.txt"
fi
# `cpu_small` as it was then, with four norm_groups; the preset has eight now.
chess-cxr pretrain "$out/pool.lance" --config "$here/../docs/proof/run/config.json" --out "$out/run"
[ -e "$out/encoder" ] || chess-cxr export "$out/run" --out "$out/encoder" --licence "$licence" --data "$films"

encoders=("ours=$out/encoder" "random=random:regnetx_002@64" "imagenet=imagenet:tf_efficientnet_lite0" "pixels=pixels:32")
[ -e "$out/kermany3" ] || chess-cxr evaluate "$out/pool.lance" --out "$out/kermany3" --labels bacteria normal virus --encoders "${encoders[@]}" \
  --first-draw one_percent --fractions 0.1 1.0 --draws 10
[ -e "$out/nih" ] || chess-cxr evaluate "$out/pool.lance" --out "$out/nih" --labels ${findings//,/ } --encoders "${encoders[@]}" \
  --fractions 0.01 0.1 0.25 1.0 --draws 10
