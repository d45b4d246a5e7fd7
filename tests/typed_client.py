"""What a program that uses chess_cxr may rely on; checked by type checkers, never run."""

from pathlib import Path

import numpy as np

import chess_cxr as cxr

film = cxr.decode_film(Path("film.dcm"))
pixels_HW: np.ndarray = film.pixels
encoder = cxr.load_encoder("cxr-small", device="cpu")
feature_ND: np.ndarray = encoder.embed([pixels_HW])
table = cxr.evaluate("films.lance", {"ours": encoder, "pixels": "pixels:16"}, fractions=[1.0]).as_markdown("auroc")
store = cxr.open_store("films.lance")
films = store.films[store.films["split"] == "test"]
model = cxr.load_classifier(Path("findings"))
probability_NK: np.ndarray = model.predict([pixels_HW])
labels: tuple[str, ...] = tuple(model.labels)
for record in cxr.predict("findings", [Path("film.dcm")]):
    print(record)
run: Path = cxr.pretrain("films.lance", "run", cxr.PRESETS["demo"]())
