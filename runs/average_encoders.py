"""Average the weights of two encoders that began with the same ones, and estimate BatchNorm's statistics anew.

usage: python runs/average_encoders.py FIRST SECOND SHARE STORE OUT
    FIRST: may be imagenet:tf_efficientnet_lite0, made grey.  SHARE: of the second, from 0 to 1.
    STORE: 2,000 of its films that SECOND has seen give the statistics.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from chess_cxr.encoders.encoder import build_grey_network
from chess_cxr.encoders.folder import write_encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.store import open_store

FILMS, BATCH = 2000, 50

_, first, second, share, store, out = sys.argv
a, b = load_encoder(first), load_encoder(second)
began = (build_grey_network(a)[0] if a.contract.channels > b.contract.channels else a.module).state_dict()
state = {
    name: torch.lerp(began[name], tensor, float(share)) if tensor.is_floating_point() else tensor
    for name, tensor in b.module.state_dict().items()
}
b.module.load_state_dict(state)
for layer in b.module.modules():
    if isinstance(layer, nn.BatchNorm2d):
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
opened = open_store(store)
seen = np.flatnonzero(opened.films["uid"].isin(set(b.training_uids)))
rows = np.random.default_rng(0).choice(seen, FILMS, replace=False)
b.module.train()
for start in range(0, FILMS, BATCH):
    with torch.inference_mode():
        films = opened.read_films(rows[start : start + BATCH])
        b.module(b.prepare([film.astype(np.float32) / 255 for film in films]))
b.module.eval()
about = f"{b.training.method}; weights averaged with a run of {a.training.steps:,} steps, share {share}"
training = replace(b.training, method=about)
print(write_encoder(Path(out), b.module.state_dict(), b.architecture, b.contract, b.licence, training, b.training_uids))
