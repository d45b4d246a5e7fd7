"""Draw the screenshots of the docs, with a real browser: docs/pictures/screen_*.png.

usage: python docs/pictures/draw_screens.py DEMO      DEMO: what `chess-cxr demo --out DEMO` has written

All films on them are generated (SYNTHETIC).  Needs chromium and the extras serve and map.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "helpers"))

from browser import Browser, open_browser  # noqa: E402
from served import serve  # noqa: E402

WIDTH, HEIGHT = 1280, 860
COLOURS = 192  # of the palette: grey films and a few hues need no more


SET = """(() => {{
  const control = document.getElementById("{control}");
  control.{part} = {value};
  for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind, {{bubbles: true}}));
}})()"""


def main() -> None:
    """Make the pages in a folder of their own and draw each."""
    demo = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("films.lance", "encoder", "run"):
            shutil.copytree(demo / name, folder / name)
        shutil.copytree(demo / "bones" / "pre-trained", folder / "bones")
        film = shutil.copy(demo / "films/patient0000/film01.dcm", folder / "film.dcm")
        run(folder, "embed encoder films.lance --quiet")
        run(folder, "map films.lance --encoder encoder --out map --thumbnails --quiet")
        run(folder, "search films.lance film.dcm --encoder encoder --k 5 --page like.html --thumbnails")
        run(folder, "audit films.lance --out audit --quiet", may_find=True)
        run(folder, "finetune classify encoder films.lance --out findings --quiet")
        with open_browser(folder / "profile") as page:
            draw(page, demo / "report.html", "demo")
            draw(page, folder / "map/index.html", "map", choose_film)
            draw(page, folder / "like.html", "search")
            draw(page, folder / "audit/report.html", "audit")
            draw(page, HERE.parent / "proof/paper/report.html", "benchmark")
            with serve(folder, "findings", "bones", "encoder", "--store", "films.lance") as served:
                page.own = (own := f"http://127.0.0.1:{served.port}/", f"blob:{own}")
                draw(page, own, "serve", lambda page: show_answer(page, Path(film)))


def run(folder: Path, words: str, *, may_find: bool = False) -> None:
    """Run a command of chess-cxr in `folder`; an audit that finds something ends with 1."""
    ended = subprocess.run([sys.executable, "-m", "chess_cxr", *words.split()], cwd=folder, stdout=subprocess.DEVNULL)
    if ended.returncode > may_find:
        raise SystemExit(f"chess-cxr {words} ended with {ended.returncode}")


def draw(page: Browser, address: Path | str, name: str, act: Callable[[Browser], None] | None = None) -> None:
    """Open a page, act on it, and write what the window shows with few colours."""
    page.open(address, WIDTH, HEIGHT)
    time.sleep(2)  # plots move into place
    if act:
        act(page)
        time.sleep(2)
    file = HERE / f"screen_{name}.png"
    shown = cv2.imdecode(np.frombuffer(page.take_screenshot(whole=False), np.uint8), cv2.IMREAD_COLOR)
    write_palette(file, shown)
    print(f"{file} ({file.stat().st_size >> 10} KiB)")


def write_palette(file: Path, picture_HW3: np.ndarray) -> None:
    """Write a BGR picture as a PNG with a palette."""
    from PIL import Image

    rgb = Image.fromarray(cv2.cvtColor(picture_HW3, cv2.COLOR_BGR2RGB))
    rgb.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def choose_film(page: Browser) -> None:
    """Choose a film of the map."""
    page.evaluate("choose([3])")


def show_answer(page: Browser, film: Path) -> None:
    """Drop a film on the page; turn the heat map and the film without bone on."""
    data = {"items": [], "files": [str(film)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call("Input.dispatchDragEvent", type=kind, x=200, y=110, data=data)
    wait(page, "document.getElementById('status').textContent == '1 film answered.'")
    chosen = "[...document.querySelectorAll('#label option')].find(it => it.textContent == 'pneumothorax').value"
    for control, value in (("label", chosen), ("strength", "45"), ("side", "true")):
        page.evaluate(SET.format(control=control, part="checked" if control == "side" else "value", value=value))
    wait(page, "!document.getElementById('heat').hidden && document.getElementById('heat').naturalWidth")
    wait(page, "document.getElementById('boneless').width > 100")
    page.evaluate("window.scrollTo(0, 0)")


def wait(page: Browser, expression: str) -> None:
    """Wait until a JavaScript expression is true."""
    end = time.monotonic() + 90
    while not page.evaluate(expression):
        if time.monotonic() > end:
            raise SystemExit(f"the page never came to {expression}")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
