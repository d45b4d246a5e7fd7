"""Films a second of `chess-cxr embed` and of the bare network on prepared films, in alternating rounds.

usage: OMP_NUM_THREADS=1 python benchmarks/embedding.py STORE [--encoder random:resnet18@224] [--films 192] [--rounds 5]
                                                        [--device auto]

The embedding reads, decodes and prepares the films too, in threads ahead of the network.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from chess_cxr.encoders.embed import open_encoder
from chess_cxr.encoders.film_features import iterate_features
from chess_cxr.store import open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--encoder", default="random:resnet18@224")
    parser.add_argument("--films", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    store, encoder = open_store(asked.store), open_encoder(asked.encoder, asked.device)
    rows = np.arange(min(asked.films, len(store)))
    prepared = encoder.prepare(store.read_films(rows))
    encoder.embed(prepared[:16])
    rates: dict[str, list[float]] = {"bare network": [], "embed": []}
    for _ in range(asked.rounds):
        for name, seconds in rates.items():
            begun = time.perf_counter()
            if name == "embed":
                for _part in iterate_features(encoder, store, rows):
                    pass
            else:
                encoder.embed(prepared)
            seconds.append(len(rows) / (time.perf_counter() - begun))
    bare, whole = (float(np.median(found)) for found in rates.values())
    ratio = float(np.median(np.divide(rates["embed"], rates["bare network"])))
    print(f"{asked.encoder}: bare network {bare:.1f}, embed {whole:.1f} films/s (medians); ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
