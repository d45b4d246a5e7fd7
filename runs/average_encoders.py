"""Average the weights of two encoders that began with the same ones, and estimate BatchNorm's statistics anew.

usage: python average_encoders.py FIRST SECOND SHARE STORE OUT
    SHARE: of the second, from 0 to 1.  STORE: 2,000 of its films to train on give the statistics.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from chess_cxr.encoders.folder import write_encoder
from chess_cxr.encoders.load import load_encoder
from chess_cxr.store import open_store

FILMS, BATCH = 2000, 50

_, first, second, share, store, out = sys.argv
a, b = load_encoder(first), load_encoder(second)
other = b.module.state_dict()
state = {
    name: torch.lerp(tensor, other[name], float(share)) if tensor.is_floating_point() else tensor
    for name, tensor in a.module.state_dict().items()
}
a.module.load_state_dict(state)
for layer in a.module.modules():
    if isinstance(layer, nn.BatchNorm2d):
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
opened = open_store(store)
seen = np.flatnonzero(opened.films["uid"].isin(set(a.training_uids)))
rows = np.random.default_rng(0).choice(seen, FILMS, replace=False)
a.module.train()
for start in range(0, FILMS, BATCH):
    with torch.inference_mode():
        films = opened.read_films(rows[start : start + BATCH])
        a.module(a.prepare([film.astype(np.float32) / 255 for film in films]))
a.module.eval()
about = f"{b.training.method}; weights averaged with a run of {a.training.steps:,} steps, share {share}"
training = replace(b.training, method=about)
print(write_encoder(Path(out), a.module.state_dict(), a.architecture, a.contract, b.licence, training, b.training_uids))
