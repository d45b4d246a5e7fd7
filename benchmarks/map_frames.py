"""Seconds until a map's page has drawn its points, and frames a second while it is moved, in Chromium without a window.

usage: python benchmarks/map_frames.py [--points 10000 100000 1000000] [--seconds 5]

SYNTHETIC points around 50 centres, with two columns and without films.  WebGL is drawn on the CPU, even where there is
a graphics card: the frames are those of the slowest machines.
"""

import argparse
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd

from chess_cxr.search.map import FilmMap, write_map
from chess_cxr.store import Store, begin_store, open_store

sys.path.append(str(Path(__file__).parent.parent / "tests/helpers"))
open_browser = import_module("browser").open_browser

SOFTWARE = ("--enable-unsafe-swiftshader", "--use-angle=swiftshader")
COUNT_FRAMES = """new Promise((done) => {
  const canvas = by("canvas"), box = canvas.getBoundingClientRect(), begun = performance.now();
  let frames = 0;
  plot.subscribe("draw", () => { frames += 1; });
  const turn = () => {
    const way = Math.sin((performance.now() - begun) / 300) > 0 ? 1 : -1;
    canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 4 * way, clientX: box.x + box.width / 2,
      clientY: box.y + box.height / 2, bubbles: true, cancelable: true }));
    if (performance.now() - begun < SECONDS * 1000) requestAnimationFrame(turn);
    else done(frames * 1000 / (performance.now() - begun));
  };
  turn();
})"""


def draw_map(points: int, rng: np.random.Generator) -> FilmMap:
    centre_C2 = rng.uniform(-0.8, 0.8, (50, 2))
    group = rng.integers(50, size=points)
    point_N2 = np.clip(centre_C2[group] + 0.06 * rng.normal(size=(points, 2)), -1, 1).astype(np.float32)
    uids = [f"{number:024x}" for number in range(points)]
    films = pd.DataFrame({"uid": uids, "patient": "", "site": [f"site {number % 8}" for number in group]})
    films["age_years"] = rng.uniform(0, 90, points)
    return FilmMap(films, point_N2, np.empty((points, 0), np.int64), np.empty((points, 0), np.float32), "pca")


def report(points: int, store: Store, folder: Path, seconds: float) -> None:
    film_map = draw_map(points, np.random.default_rng(0))
    page = write_map(film_map, [store], folder / str(points), "SYNTHETIC points", False, lambda *_: None)
    size = sum(file.stat().st_size for file in page.parent.iterdir()) / 2**20
    with open_browser(folder / f"profile{points}", *SOFTWARE) as browser:
        begun = time.perf_counter()
        browser.open(page, 1280)
        browser.evaluate("new Promise((done) => setTimeout(() => drawn.then(() => done(1)), 0))")
        drawn = time.perf_counter() - begun
        renderer = browser.evaluate(
            "(() => { const gl = document.createElement('canvas').getContext('webgl');"
            " const told = gl.getExtension('WEBGL_debug_renderer_info');"
            " return gl.getParameter(told ? told.UNMASKED_RENDERER_WEBGL : gl.RENDERER); })()"
        )
        rate = browser.evaluate(COUNT_FRAMES.replace("SECONDS", str(seconds)))
    print(f"{points:9,d} points: {size:6.1f} MiB, drawn after {drawn:5.1f} s, {rate:5.1f} frames/s ({renderer})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        location = Path(folder) / "points.lance"
        begin_store(location, [], "SYNTHETIC").finish()
        for points in asked.points:
            report(points, open_store(location), Path(folder), asked.seconds)


if __name__ == "__main__":
    main()
