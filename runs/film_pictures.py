"""The pictures that runs/fit_film_classifier.py learns from: real films, and what is certainly no chest film."""

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from sklearn.datasets import load_sample_images

from chess_cxr.decode.film import decode_film

SIDE = 128  # what films are kept at: what the first step of compute_thumbnail makes of them, so nothing is lost
# How many pictures of each kind are made up.
MADE_UP = {
    "photograph": 300,
    "page": 150,
    "noise": 150,
    "ramp": 200,
    "leaves": 400,
    "drawn slice": 300,
    "tight slice": 450,
    "drawn limb": 450,
}
FROM_FILMS = {"jumble": 40, "piece": 60, "contact sheet": 30, "warped": 30}  # ... out of the films of each set
EARLIER = ("covid_cxnet", "jsrt", "kermany3", "nih_covid")  # the sets that the earlier judge was fitted on
# Stored with bone dark by their source, as anybody can see: turned as they are read.
NEGATIVES = (
    "nih_adult/images/00017625_000.jpg",
    "nih_adult/images/00017999_000.jpg",
    "rsna_normal/images/rsna_normal_07771.jpg",
)
# Slices and films of one patient, as far as the pictures tell: they leave the fit together.
CT_PATIENTS = (("00", "02", "04"), ("06",), ("08", "10", "12"), ("14",), ("16",), ("18",), ("20",))
LATERAL_PATIENTS = (("00",), ("02",), ("04",), ("06",), ("08", "10"))


@dataclass(frozen=True)
class Picture:
    """One film or other picture, [H, W] float32 with the longest side at most `SIDE`.

    group: patient or kind; of pictures made out of films, the set of these films.  part: of films of the pool "fit" or
    "test".
    """

    pixels: np.ndarray
    kind: int
    source: str
    group: str
    part: str = ""


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Bring the longest side down to `SIDE`."""
    scale = SIDE / max(pixels.shape)
    if scale >= 1:
        return pixels
    size = [max(8, round(side * scale)) for side in pixels.shape[::-1]]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def read_film(path: Path) -> np.ndarray:
    """Decode one film as the ingest does, and shrink it."""
    return shrink(decode_film(path).pixels)


def deal_part(patient: str) -> str:
    """Deal a patient to one of the two parts."""
    position = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) / 2**32
    return "fit" if position < 0.6 else "test"


def read_pool(data: Path) -> list[Picture]:
    """Read the films of pool_wide.csv without the near duplicates that it lists."""
    pictures = []
    with (data / "pool_wide.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if not row["near_duplicate_of"]:
                patient = f"{row['set']}/{row['patient'] or row['file']}"
                pixels = read_film(data / row["file"])
                pixels = 1 - pixels if row["file"] in NEGATIVES else pixels
                pictures.append(Picture(pixels, 0, row["set"], patient, deal_part(patient)))
    return pictures


def read_other_films(data: Path) -> list[Picture]:
    """Read the real chest films outside of the pool, only measured; part: the set to leave out with them.

    bone_jsrt and most of bone_pairs show films of jsrt, image_ext comes with covid_cxnet; the dicom films are no set's.
    """
    chests = [data / f"dicom/{name}.dcm" for name in ("siim_850819", "966_fixed", "RG1_J2KI", "RG1_JLSN")]
    found = {
        "bone_jsrt": ("jsrt", sorted((data / "bone_jsrt/JSRT").glob("*.png"))),
        "bone_pairs": ("jsrt", sorted((data / "bone_pairs/source").glob("*.png"))),
        "dicom": ("tuberculosis", chests),
        "nasty/image_ext": ("covid_cxnet", sorted((data / "nasty/image_ext").iterdir())),
    }
    return [Picture(read_film(path), 0, name, name, like) for name, (like, paths) in found.items() for path in paths]


def read_rare(data: Path) -> list[Picture]:
    """Read lateral films, CT slices and limbs: all fit the weights, and are measured by leaving patients out."""
    folder, pictures = data / "nasty/not_frontal", []
    for name, kind, patients in (("ct", 2, CT_PATIENTS), ("lateral", 1, LATERAL_PATIENTS)):
        for number, files in enumerate(patients):
            pictures += [Picture(read_film(folder / f"{name}_{f}.jpg"), kind, name, f"{name}{number}") for f in files]
    for name in ("RG2_JPLL", "RG3_J2KR"):
        pictures.append(Picture(read_film(data / f"dicom/{name}.dcm"), 2, "limb", name))
    return pictures


def draw_made_up(rng: np.random.Generator, films: Sequence[Picture]) -> list[Picture]:
    """Draw what is certainly no chest film: photographs, text, noise, shapes, sketches, and films taken to pieces."""
    photographs = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in load_sample_images().images]
    hopper = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
    photographs.append(cv2.imread(str(hopper), cv2.IMREAD_GRAYSCALE))
    makers: dict[str, Callable[[], np.ndarray]] = {
        "photograph": lambda: _crop_photograph(rng, photographs),
        "page": lambda: _draw_page(rng),
        "noise": lambda: _draw_noise(rng),
        "ramp": lambda: _draw_ramp(rng),
        "leaves": lambda: _draw_leaves(rng),
        "drawn slice": lambda: _draw_slice(rng),
        "tight slice": lambda: _crop_slice(rng, _draw_slice(rng)),
        "drawn limb": lambda: _draw_limb(rng),
    }
    drawn = [Picture(shrink(makers[name]()), 2, name, name) for name, count in MADE_UP.items() for _ in range(count)]
    for source in sorted({film.source for film in films}):
        mine = [film.pixels for film in films if film.source == source]
        spoil: dict[str, Callable[[], np.ndarray]] = {
            "jumble": lambda mine=mine: _jumble(rng, mine[rng.integers(len(mine))]),
            "piece": lambda mine=mine: _cut_piece(rng, mine[rng.integers(len(mine))]),
            "contact sheet": lambda mine=mine: _lay_out(rng, [mine[i] for i in rng.integers(len(mine), size=4)]),
            "warped": lambda mine=mine: _warp(rng, mine[rng.integers(len(mine))]),
        }
        drawn += [Picture(shrink(spoil[name]()), 2, name, source) for name, n in FROM_FILMS.items() for _ in range(n)]
    return drawn


def _crop_photograph(rng: np.random.Generator, photographs: Sequence[np.ndarray]) -> np.ndarray:
    photograph = photographs[rng.integers(len(photographs))]
    height, width = (round(side * rng.uniform(0.3, 1)) for side in photograph.shape)
    top, left = rng.integers(photograph.shape[0] - height + 1), rng.integers(photograph.shape[1] - width + 1)
    return photograph[top : top + height, left : left + width].astype(np.float32) / 255


def _draw_page(rng: np.random.Generator) -> np.ndarray:
    page = np.full((int(rng.integers(300, 800)), int(rng.integers(300, 800))), 255, np.uint8)
    scale, letters = rng.uniform(0.4, 1.2), list("abcdefghijklmnopqrstuvwxyz    ,.0123456789")
    for y in range(int(rng.integers(20, 100)), page.shape[0] - 10, int(30 * scale * rng.uniform(1, 2)) + 4):
        line = "".join(rng.choice(letters, int(rng.integers(5, 60))))
        cv2.putText(page, line, (int(rng.integers(5, 40)), y), cv2.FONT_HERSHEY_SIMPLEX, scale, 0, 1)
    grey = page.astype(np.float32) / 255
    return grey if rng.random() < 0.7 else 1 - grey


def _draw_noise(rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), float(np.exp(rng.uniform(-1, 3.2))))
    return (noise - noise.min()) / np.ptp(noise)


def _draw_ramp(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-1, 1)
    ramp = np.cos(angle) * x + np.sin(angle) * y + bend * (x * x + y * y) + rng.normal(0, 0.02, x.shape)
    return ((ramp - ramp.min()) / np.ptp(ramp)).astype(np.float32)


def _jumble(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    pieces = int(rng.integers(2, 6))
    square = cv2.resize(pixels, (30 * pieces, 30 * pieces), interpolation=cv2.INTER_AREA)
    tiles = square.reshape(pieces, 30, pieces, 30).swapaxes(1, 2).reshape(-1, 30, 30)
    tiles = tiles[rng.permutation(len(tiles))].reshape(pieces, pieces, 30, 30)
    return np.ascontiguousarray(tiles.swapaxes(1, 2).reshape(square.shape))


def _cut_piece(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Enlarge a small square of a film: texture without anatomy."""
    side = max(12, int(min(pixels.shape) * rng.uniform(0.1, 0.24)))
    top, left = rng.integers(0, pixels.shape[0] - side), rng.integers(0, pixels.shape[1] - side)
    piece = cv2.resize(pixels[top : top + side, left : left + side], (64, 64), interpolation=cv2.INTER_CUBIC)
    return np.clip((piece - piece.min()) / max(float(np.ptp(piece)), 1e-3), 0, 1).astype(np.float32)


def _lay_out(rng: np.random.Generator, films: Sequence[np.ndarray]) -> np.ndarray:
    """Lay several films on one sheet."""
    down, across, gap = int(rng.integers(1, 4)), int(rng.integers(2, 5)), int(rng.integers(0, 4))
    tiles = [cv2.resize(film, (48, 48), interpolation=cv2.INTER_AREA) for film in films]
    tiles = [cv2.copyMakeBorder(t, *[gap] * 4, cv2.BORDER_CONSTANT, value=float(rng.integers(0, 2))) for t in tiles]
    rows = [np.hstack([tiles[rng.integers(len(tiles))] for _ in range(across)]) for _ in range(down)]
    return np.ascontiguousarray(np.vstack(rows))


def _warp(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Bend a film until no anatomy is left."""
    height, width = pixels.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    reach = rng.uniform(8, 25)
    shifts = [cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), reach) for _ in range(2)]
    dx, dy = (shift / shift.std() * np.float32(reach * rng.uniform(0.9, 1.6)) for shift in shifts)
    return np.clip(cv2.remap(pixels, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101), 0, 1)


def _draw_leaves(rng: np.random.Generator) -> np.ndarray:
    """Drop shaded shapes of all sizes onto each other, which has the statistics of photographs (dead leaves)."""
    height, width = (int(side) for side in rng.integers(80, SIDE, 2))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    picture = np.full((height, width), rng.uniform(0, 1), np.float32)
    smallest, steepness = rng.uniform(1.5, 8), rng.uniform(1, 2.5)
    for _ in range(int(np.exp(rng.uniform(2, 5.5)))):
        radius = min(smallest * (1 - rng.random()) ** (-1 / steepness), 70)
        centre = rng.uniform(0, width), rng.uniform(0, height)
        if rng.random() < 0.5:
            radii = radius, radius * rng.uniform(0.2, 1)
            leaf = _draw_oval((height, width), centre, radii, rng.uniform(0, 180))
        else:
            corners = int(rng.integers(3, 7))
            turn, reach = np.sort(rng.uniform(0, 2 * np.pi, corners)), radius * rng.uniform(0.6, 1.2, corners)
            points = np.stack([centre[0] + reach * np.cos(turn), centre[1] + reach * np.sin(turn)], 1).astype(np.int32)
            filled = cv2.fillPoly(np.zeros((height, width), np.uint8), [points], 255, cv2.LINE_AA)
            leaf = filled.astype(np.float32) / 255
        slope_x, slope_y = rng.normal(0, 0.1, 2) / max(radius, 4)
        grey = rng.uniform(0, 1) + slope_x * (x - centre[0]) + slope_y * (y - centre[1])
        picture = picture * (1 - leaf) + np.clip(grey, -0.2, 1.2) * leaf
    picture = cv2.GaussianBlur(picture, (0, 0), float(np.exp(rng.uniform(-1, 1.2))))
    if rng.random() < 0.3:
        picture = np.concatenate([picture, picture[:, ::-1]], 1)  # symmetry alone makes no chest
    return np.clip(picture, 0, 1).astype(np.float32)


def _crop_slice(rng: np.random.Generator, drawn: np.ndarray) -> np.ndarray:
    """Cut a slice down to the lungs, saturate it, add grain: as slices stand in publications."""
    height, width = drawn.shape
    if rng.random() < 0.5:
        top, bottom, left, right = (rng.uniform(0, 0.22, 4) * (height, height, width, width)).astype(int)
        drawn = drawn[top : height - bottom, left : width - right]
    if rng.random() < 0.4:
        drawn = drawn / np.float32(rng.uniform(0.4, 1))
    if rng.random() < 0.3:
        drawn = drawn + rng.normal(0, rng.uniform(0.03, 0.15), drawn.shape)
    return np.ascontiguousarray(np.clip(drawn, 0, 1), np.float32)


def _draw_slice(rng: np.random.Generator) -> np.ndarray:
    """Sketch an axial CT slice: body, fat, ribs, lungs with vessels and shadows, heart, spine, table, round field."""
    shape, u = (int(rng.integers(100, SIDE)), SIDE), rng.uniform
    height, width = shape
    x, y, size = width / 2 + u(-8, 8), height / 2 + u(-8, 8), u(0.75, 1.25)
    across, down = width * 0.46 * size, height * 0.42 * size
    air, (fat, soft) = u(0, 0.15), sorted((u(0.25, 0.9), u(0.35, 1.0)))
    slice_ = np.full(shape, air, np.float32)

    def put(mask: np.ndarray, grey: float) -> None:
        slice_[:] = slice_ * (1 - mask) + mask * grey

    def oval(dx: float, dy: float, rx: float, ry: float, turn: float = 0.0) -> np.ndarray:
        return _draw_oval(shape, (x + across * dx, y + down * dy), (across * rx, down * ry), turn)

    put(oval(0, 0, 1, 1), fat)
    put(oval(0, 0, u(0.82, 0.95), u(0.82, 0.94)), soft)
    for turn in u(0, 2 * np.pi, int(rng.integers(8, 18))):
        rib = 0.78 * np.cos(turn), 0.78 * np.sin(turn), u(0.04, 0.12), u(0.02, 0.05)
        put(oval(*rib, np.degrees(turn) + 90), u(0.85, 1))
    if rng.random() < 0.8:
        dark = u(0, 0.35)
        for side in (-1, 1):
            lung = oval(side * u(0.36, 0.46), u(-0.12, 0.1), u(0.22, 0.36), u(0.45, 0.68), side * u(-20, 20))
            put(lung, dark)
            for _ in range(int(rng.integers(0, 25))):
                vessel = oval(side * u(0.2, 0.6), u(-0.5, 0.5), u(0.015, 0.07), u(0.012, 0.035), u(0, 180))
                put(vessel * lung, u(0.4, 1))
            if rng.random() < 0.4:
                cloud = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), u(2, 8))
                put(np.clip(cloud / cloud.std(), 0, 1) * lung, u(0.4, 0.8))
        put(oval(u(-0.05, 0.2), u(-0.35, 0.05), u(0.1, 0.36), u(0.2, 0.45), u(-40, 40)), soft * u(0.9, 1.1))
        if rng.random() < 0.6:
            put(oval(u(-0.06, 0.06), u(-0.1, 0.1), u(0.04, 0.09), u(0.05, 0.1)), air)
    put(oval(0, u(0.45, 0.6), u(0.09, 0.15), u(0.12, 0.2)), u(0.85, 1))
    put(oval(0, u(0.66, 0.74), 0.05, 0.06), u(0.3, 0.7))
    if rng.random() < 0.5:
        wide = u(1.1, 1.8)
        table = oval(0, u(0.5, 0.7), wide, 0.6) - oval(0, u(0.4, 0.66), wide, 0.6)
        put(np.clip(table, 0, 1) * (1 - oval(0, 0, 1, 1)), u(0.3, 0.9))
    if rng.random() < 0.3:
        put(1 - _draw_oval(shape, (width / 2, height / 2), (width / 2, width / 2)), 0)
    noisy = (slice_ + rng.normal(0, u(0, 0.06), shape)).astype(np.float32)
    cut = u(0.05, 0.16) if rng.random() < 0.4 else 0
    top, left = int(height * cut), int(width * cut)
    near = cv2.GaussianBlur(noisy, (0, 0), u(0.3, 1))[top : height - top, left : width - left]
    return np.ascontiguousarray(np.clip(near[::-1] if rng.random() < 0.2 else near, 0, 1))


def _draw_oval(
    shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float], turn: float = 0.0
) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    axes = max(1, int(radii[0])), max(1, int(radii[1]))
    cv2.ellipse(mask, (int(centre[0]), int(centre[1])), axes, turn, 0, 360, 255, -1, cv2.LINE_AA)
    return mask.astype(np.float32) / 255


def _draw_limb(rng: np.random.Generator) -> np.ndarray:
    """Sketch a radiograph of one or two long bones, of a joint or of fingers, sometimes between bright shutters."""
    u = rng.uniform
    height, width = (int(side) for side in rng.integers(90, SIDE, 2))
    narrow, turn, members = min(height, width), u(0, np.pi), int(rng.choice([1, 1, 1, 2, 4, 5]))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    thick = np.zeros((height, width), np.float32)
    for member in range(members):
        angle = turn + (u(-0.25, 0.25) if members > 1 else 0)
        offset = (member - (members - 1) / 2) * narrow * 0.9 / max(members, 1.5) + u(-6, 6)
        aside = (y - height / 2) * np.cos(angle) - (x - width / 2) * np.sin(angle) - offset
        along = ((x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)) / max(height, width) * 2
        shape = 1 + u(-0.5, 0.5) * along + u(-0.2, 0.4) * along**2
        sleeve = np.maximum(narrow * u(0.2, 0.5) / max(1, members * 0.7) * shape, 3)
        inside = along < u(0.6, 3)
        thick += np.sqrt(np.clip(1 - (aside / sleeve) ** 2, 0, None)) * inside * u(0.35, 0.7)
        for bone in range(1 if members > 2 else int(rng.integers(1, 3))):
            radius = np.maximum(sleeve * u(0.18, 0.4), 2) * (1 + u(0.2, 1.2) * np.abs(along - u(-0.3, 0.3)) ** 2)
            chord = np.clip(1 - ((aside - (bone * u(0.3, 0.8) - 0.1) * sleeve) / radius) ** 2, 0, None)
            cortex = ((chord > 0) & (chord < 0.35)) * u(0, 0.35)
            thick += (np.sqrt(chord) * u(0.2, 0.5) + cortex) * (np.abs(along - u(-0.4, 0.4)) > u(0, 0.05)) * inside
    grey = 1 - np.exp(-cv2.GaussianBlur(thick, (0, 0), u(0.5, 1.6)) * u(0.8, 2.5))
    grey = grey / max(float(grey.max()), 1e-3) + rng.normal(0, u(0, 0.02), grey.shape)
    if rng.random() < 0.35:
        shutter = int(width * u(0.05, 0.25))
        grey[:, :shutter] = grey[:, width - shutter :] = u(0, 1)
    return np.clip(grey, 0, 1).astype(np.float32)


def widen(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Show a film in a wider field: air beside a narrow trunk, more neck, more abdomen.

    Without it, thin patients in a wide field are what the judge of films takes for something else than a chest.
    """
    height, width = pixels.shape
    wide = pixels
    if rng.random() < 0.8:
        left, right = (int(side) for side in rng.uniform(0, 0.28, 2) * width * rng.uniform(0, 1))
        left, right = ((left + right) // 2,) * 2 if rng.random() < 0.5 else (left, right)
        wide = cv2.copyMakeBorder(pixels, 0, 0, left, right, cv2.BORDER_REPLICATE)
        if rng.random() < 0.75:
            air = float(np.percentile(pixels, rng.uniform(0, 3)) * rng.uniform(0.5, 1))
            x, y = np.arange(wide.shape[1])[None], np.linspace(-1, 1, height)[:, None]
            lean, bow = rng.normal(0, 0.06, 2) * width, rng.uniform(-0.06, 0.1, 2) * width
            start = left * rng.uniform(0, 1.3) + lean[0] * y + bow[0] * y * y
            stop = wide.shape[1] - right * rng.uniform(0, 1.3) + lean[1] * y + bow[1] * y * y
            soft = rng.uniform(1, 10)
            inside = np.clip((x - start) / soft, 0, 1) * np.clip((stop - x) / soft, 0, 1)
            wide = (air + (wide - air) * inside * inside * (3 - 2 * inside)).astype(np.float32)
    if rng.random() < 0.6:
        above, below = int(rng.uniform(0, 0.12) * height), int(rng.uniform(0, 0.3) * height)
        edge = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_REFLECT_101
        wide = cv2.copyMakeBorder(wide, above, below, 0, 0, edge)
    return np.ascontiguousarray(shrink(np.clip(wide, 0, 1)))


def distort(pixels: np.ndarray, rng: np.random.Generator, angle: float | None = None) -> np.ndarray:
    """Turn, crop, mirror, change gamma, add lead markers and borders: what happens to films on their way."""
    height, width = pixels.shape
    if angle is None:
        angle = rng.normal(0, 8) if rng.random() < 0.8 else rng.uniform(-30, 30)
        angle += rng.choice([90, 180, 270]) if rng.random() < 0.1 else 0
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, rng.uniform(1.0, 1.35))
    matrix[:, 2] += rng.uniform(-0.08, 0.08, 2) * (width, height)
    edge = cv2.BORDER_REPLICATE if rng.random() < 0.7 else cv2.BORDER_CONSTANT
    fill = float(rng.integers(0, 2))
    turned = cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=edge, borderValue=fill)
    if rng.random() < 0.5:
        turned = turned[:, ::-1]
    top, bottom = rng.integers(0, max(2, height // 7), 2)
    left, right = rng.integers(0, max(2, width // 7), 2)
    cut = np.ascontiguousarray(turned[top : height - bottom, left : width - right])
    for _ in range(int(rng.integers(0, 3))):
        y, x = rng.integers(0, cut.shape[0]), rng.integers(0, cut.shape[1])
        cut[y : y + rng.integers(2, 16), x : x + rng.integers(2, 24)] = rng.integers(0, 2)
    if rng.random() < 0.3:
        widths = [int(w) for w in rng.integers(1, 16, 4)]
        cut = cv2.copyMakeBorder(cut, *widths, cv2.BORDER_CONSTANT, value=float(rng.integers(0, 2)))
    return np.clip(cut, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.35)))
