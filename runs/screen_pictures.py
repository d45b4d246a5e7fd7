"""Pictures that runs/fit_film_classifier.py and runs/count_judged.py measure, and that are never fitted."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from film_pictures import read_film
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from pydicom.data import get_testdata_file

DOCS = Path(__file__).parent.parent / "docs"
FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"
BLANKS = 60
DICOMS = ("CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm", "examples_jpeg2k.dcm")  # come with pydicom


def read_unseen(data: Path, photographs: Path | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the kind of each picture and its pixels, [H, W] in [0, 1]; photographs: a folder of pictures."""
    dicoms = (get_testdata_file(name, download=False) for name in DICOMS)
    yield from (("slices and pictures of pydicom", read_film(Path(name))) for name in dicoms if name)
    pieces = sorted((data / "ct_nodules/proj").glob("*.png"))
    yield from (("pieces of projected CT", read_film(path)) for path in pieces)
    yield from (("screenshots", screen) for screen in draw_screens())
    yield from (("blank films", blank) for blank in draw_blanks(np.random.default_rng(7)))
    for path in sorted(photographs.iterdir()) if photographs else ():
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if grey is not None and min(grey.shape) >= 100:
            yield "photographs", grey.astype(np.float32) / 255


def draw_screens() -> Iterator[np.ndarray]:
    """Draw the pages of docs/ as a browser shows them, their code blocks in a terminal, and plots: [H, W] in [0, 1]."""
    pages = [path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))]
    for number, page in enumerate(pages):
        yield _draw_browser(page, dark=number % 3 == 2)
    blocks = [block for page in pages for block in page.split("```")[1::2] if block.count("\n") >= 4]
    for number, block in enumerate(blocks[:16]):
        yield _draw_terminal(block * (1 + number % 3), dark=number % 4 != 3)
    yield from _draw_plots()


def draw_blanks(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Draw exposures without a patient: an even or slanting field, grain, a lead letter, at times shutters."""
    for number in range(BLANKS):
        height, width = (int(side) for side in rng.integers(300, 600, 2))
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        field = rng.uniform(0.1, 0.9) + rng.uniform(0, 0.15) * x + rng.uniform(0, 0.1) * y
        field += rng.normal(0, rng.uniform(0.002, 0.03), field.shape)
        if number % 3 != 2:
            field = _write_letter(field, rng)
        if number % 4 == 3:
            top, left = int(height * rng.uniform(0.05, 0.3)), int(width * rng.uniform(0.05, 0.3))
            shutter = np.full_like(field, float(rng.integers(0, 2)))
            shutter[top : height - top, left : width - left] = field[top : height - top, left : width - left]
            field = shutter
        yield (np.rint(np.clip(field, 0, 1) * 255) / 255).astype(np.float32)


def _draw_browser(page: str, dark: bool) -> np.ndarray:
    paper, ink, box = (30, 225, 50) if dark else (255, 30, 240)
    image = Image.new("L", (1280, 800), paper)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 1280, 50), fill=box)
    draw.text((20, 12), "chess-cxr", ink, _font("DejaVuSans-Bold", 20))
    for row, name in enumerate(sorted(path.stem for path in DOCS.glob("*.md"))):
        draw.text((20, 80 + 30 * row), name, ink, _font("DejaVuSans", 14))
    y, code = 70, False
    for line in page.splitlines():
        if line.startswith("```"):
            code = not code
            continue
        if code:
            draw.rectangle((250, y, 1230, y + 24), fill=box)
        size = 28 if line.startswith("# ") else 20 if line.startswith("#") else 14
        draw.text((255, y + 3), line.lstrip("# "), ink, _font("DejaVuSansMono" if code else "DejaVuSans", size))
        y += size + 10
    return np.asarray(image, np.float32) / 255


def _draw_terminal(text: str, dark: bool) -> np.ndarray:
    paper, ink = (15, 220) if dark else (250, 20)
    lines = text.splitlines()
    image = Image.new("L", (900, 600), paper)
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines[:33]):
        draw.text((8, 6 + 18 * row), line, ink, _font("DejaVuSansMono", 14))
    return np.asarray(image, np.float32) / 255


def _draw_plots() -> Iterator[np.ndarray]:
    lines = (DOCS / "proof/run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    names = sorted({name for row in rows for name, value in row.items() if isinstance(value, float)})[:12]
    for number, name in enumerate(names):
        at = [(place, row[name]) for place, row in enumerate(rows) if isinstance(row.get(name), float)]
        step, value = np.array(at).T
        figure = Figure(figsize=(6.4, 4.8), facecolor="black" if number % 4 == 3 else "white")
        axes = figure.subplots()
        if number % 3 == 0:
            axes.plot(step, value, label=name)
        elif number % 3 == 1:
            axes.hist(value, 30)
        else:
            axes.scatter(step, value, s=4)
        axes.set_title(name)
        axes.grid(number % 2 == 0)
        stored = io.BytesIO()
        figure.savefig(stored, format="png")
        yield np.asarray(Image.open(stored).convert("L"), np.float32) / 255


def _write_letter(field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = field.shape
    mask = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(mask)
    for letter in str(rng.choice(["L", "R", "PA", "R 12", "AP UPRIGHT"])).split():
        place = float(rng.uniform(0.02, 0.8) * width), float(rng.uniform(0.02, 0.8) * height)
        draw.text(place, letter, 255, _font("DejaVuSans-Bold", int(rng.integers(14, 50))))
    share = np.asarray(mask, np.float64) / 255
    blended: np.ndarray = field * (1 - share) + share * float(rng.choice([0.02, 0.98]))
    return blended


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS / f"{name}.ttf"), size)
