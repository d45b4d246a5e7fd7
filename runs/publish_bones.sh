#!/usr/bin/env bash
# Publish a bone model as weights/NAME, its card with licence, films and further scores added.
# usage: runs/publish_bones.sh MODEL NAME [ENCODER]
#   MODEL: what `chess-cxr finetune bones` has written.  runs/cards/NAME.md: what the card says besides.
#   ENCODER: the name by which the encoder it began with is known today, if that has changed.
# The pictures of test films stay behind: they are not ours to give.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=$1 weights=$here/../weights/$2
[ -e "$model/config.json" ] || { echo "$model is no model folder" >&2; exit 2; }
rm -rf "$weights"
mkdir "$weights"
cp "$model"/{config.json,result.json,model.safetensors,golden.safetensors,model.onnx} "$weights"
python - "$weights" "$here/cards/$2.md" "${3:-}" <<'PYTHON'
import json, sys
from pathlib import Path

from chess_cxr.tasks.card import CARD_FILE, render_card

weights, besides, encoder = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
config, result = (json.loads((weights / name).read_text()) for name in ("config.json", "result.json"))
for name, content in (("config.json", config), ("result.json", result)):
    content["encoder"] = encoder or content["encoder"]
    (weights / name).write_text(json.dumps(content, indent=1) + "\n")
card = render_card(config, result).replace("THIS_FOLDER", weights.name)
(weights / CARD_FILE).write_text(f"{card}\n{besides.read_text()}")
PYTHON
