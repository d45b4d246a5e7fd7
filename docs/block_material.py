"""Generated things that the blocks of the pages are run on: films, stores, encoders, models, as small as they may be.

`RECIPES` names each with the command that makes it in the current folder; `run_blocks.py` makes a piece when a page
first asks for it.  Everything is SYNTHETIC.

    python docs/block_material.py films           write one piece by hand
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDE = 128  # of the films
PATIENTS, FILMS_PER_PATIENT = 15, 2


@dataclass(frozen=True)
class Recipe:
    """The command that makes a piece of material, and the pieces that it reads."""

    command: str
    needs: tuple[str, ...] = ()


def _draw(name: str, *needs: str) -> Recipe:
    return Recipe(f"{sys.executable} {Path(__file__).resolve()} {name}", needs)


DEMO = Path(__file__).resolve().parents[1] / "demo"  # what `make demo` leaves in the checkout
TAKE_DEMO = f"mkdir demo && cp -r {DEMO}/films {DEMO}/encoder demo/"
INGEST = "chess-cxr ingest --quiet {0}/ --out {0}.lance --table {1} --columns patient=PatientID class=Diagnosis"
RECIPES = {
    "films": _draw("films"),  # DICOM
    "demo": Recipe(TAKE_DEMO if (DEMO / "report.html").exists() else "chess-cxr demo --quiet --out demo"),
    "labels.csv": _draw("labels.csv", "films"),  # path, PatientID, Diagnosis, Split
    "film.dcm": Recipe("cp healthy/patient0000_film01.dcm film.dcm", ("healthy",)),
    "new": Recipe("mkdir new && cp healthy/patient000*.dcm new/", ("healthy",)),
    "archive": Recipe("cp -r films archive && rm archive/labels.csv", ("films",)),
    "healthy": _draw("healthy", "films"),  # DICOM films without a finding
    "lungs": _draw("lungs", "healthy"),  # a mask for each film in healthy/
    "masks": _draw("masks", "lungs"),  # a nodule for each
    "where.png": Recipe("cp masks/patient0000_film01.png where.png", ("masks", "film.dcm")),
    "bse_jsrt": _draw("bse_jsrt"),  # pairs with and without bone, as BSE-JSRT has them
    "jsrt": _draw("jsrt"),  # films with marked nodules, as JSRT comes as PNG
    "ct_nodules": _draw("ct_nodules"),  # drawn nodules in the form of projected CT nodules
    "ChestX-ray14": _draw("ChestX-ray14"),
    "films.lance": Recipe(INGEST.format("films", "labels.csv") + " split=Split", ("films", "labels.csv")),
    "short.json": _draw("short.json"),  # a pre-training of three steps
    "runs/first": Recipe(
        "chess-cxr pretrain --quiet films.lance --config short.json --out runs/first", ("films.lance", "short.json")
    ),
    "runs/second": Recipe("mkdir -p runs && cp -r runs/first runs/second", ("runs/first",)),
    "encoders/first": Recipe(
        "chess-cxr export runs/first --out encoders/first --licence Apache-2.0 --data SYNTHETIC", ("runs/first",)
    ),
    "models/findings": Recipe(
        "chess-cxr finetune classify --quiet encoders/first films.lance --out models/findings",
        ("encoders/first", "films.lance"),
    ),
    "models/bones": Recipe(
        "chess-cxr finetune bones --quiet encoders/first phantom:10@64 --out models/bones "
        "--size 64 --crop 64 --decoder tiny --steps 2 --batch 2",
        ("encoders/first",),
    ),
    "models/nodules": Recipe(
        "chess-cxr finetune nodules --quiet encoders/first phantom:10@128 --out models/nodules "
        "--film-size 128 --width 8 --steps 2 --batch 2",
        ("encoders/first",),
    ),
    "suite.toml": _draw("suite.toml"),
    "chess.pth.tar": _draw("chess.pth.tar"),  # an untrained network in the layout of the published checkpoint
}


def write_films(folder: Path) -> None:
    """Write DICOM films of a few patients, six classes."""
    from chess_cxr.sources.phantom.film import write_phantom_films

    write_phantom_films(folder, PATIENTS, FILMS_PER_PATIENT, seed=0, size=SIDE)


def read_films(folder: Path) -> Iterator[dict[str, str]]:
    """Read the rows of the table beside the films."""
    with (folder / "labels.csv").open(newline="") as file:
        yield from csv.DictReader(file)


def write_labels(table: Path) -> None:
    """Write the films' labels as a hospital may have them, with the split of each patient."""
    rows = [("path", "PatientID", "Diagnosis", "Split")]
    for film in read_films(Path("films")):
        number = int(film["patient"].removeprefix("PHANTOM"))
        split = ("train", "train", "test", "train", "val", "test")[number % 6]
        finding = film["label"] if film["label"] in ("normal", "nodule") else "opacity"
        rows.append((film["file"], film["patient"], finding, split))
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_healthy(folder: Path) -> None:
    """Copy the films without a finding."""
    folder.mkdir()
    for film in read_films(Path("films")):
        if film["label"] == "normal":
            shutil.copy2(Path("films") / film["file"], folder / film["file"].replace("/", "_"))


def write_lungs(folder: Path) -> None:
    """Write a lung mask for each healthy film."""
    from chess_cxr import decode_film
    from chess_cxr.tasks.nodules.lungs import find_lung_fields

    folder.mkdir()
    for film in sorted(Path("healthy").iterdir()):
        write_png(folder / f"{film.stem}.png", find_lung_fields(decode_film(film).pixels) * 255)


def write_masks(folder: Path) -> None:
    """Write a round mask in the widest place of the lungs of each healthy film."""
    import cv2
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for lung in sorted(Path("lungs").iterdir()):
        depth = cv2.distanceTransform(np.asarray(Image.open(lung)), cv2.DIST_L2, 5)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        y, x = np.mgrid[: depth.shape[0], : depth.shape[1]]
        write_png(folder / lung.name, ((y - row) ** 2 + (x - column) ** 2 <= 16) * 255)


def write_bse_jsrt(folder: Path) -> None:
    """Write pairs of films with and without bone."""
    from chess_cxr.tasks.bones.pairs import draw_phantom_pair

    for number in range(10):
        pair = draw_phantom_pair(number, 100 + number, SIDE)
        write_png(folder / "JSRT" / f"JPCLN{number + 1:03d}.png", pair.film_HW * 255)
        write_png(folder / "BSE_JSRT" / f"JPCLN{number + 1:03d}.png", pair.bone_free_HW * 255)


def write_jsrt(folder: Path) -> None:
    """Write films with a nodule and without, with masks of nodules and lungs."""
    import numpy as np

    from chess_cxr.tasks.nodules.films import read_nodule_films

    rows: list[tuple[Any, ...]] = [("file", "case", "nodule", "state", "low_contrast")]
    for film in read_nodule_films(f"phantom:10@{SIDE}#1"):
        has = bool(film.mask_HW.any())
        rows.append((f"images/{film.name}.png", film.name, int(has), "malignant" if has else "", 0))
        write_png(folder / "images" / f"{film.name}.png", film.film_HW * 255)
        write_png(folder / "masks" / f"{film.name}.png", np.asarray(film.lung_HW, int))
        if has:
            write_png(folder / "nodule_masks" / f"{film.name}.png", film.mask_HW * 255)
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_ct_nodules(folder: Path) -> None:
    """Write nodules of 10 to 30 mm, half a millimetre a pixel."""
    import numpy as np

    from chess_cxr.tasks.nodules.insertion import draw_analytic_nodule

    rows: list[tuple[Any, ...]] = [("nodule", "mask", "series_uid", "spacing")]
    for number in range(5):
        nodule = draw_analytic_nodule(10.0 + 5 * number, np.random.default_rng(number))
        write_png(folder / "nodule" / f"{number}.png", nodule.density_YX * 255)
        write_png(folder / "mask" / f"{number}.png", nodule.mask_YX * 255)
        rows.append((f"nodule/{number}.png", f"mask/{number}.png", f"1.2.{number}", nodule.spacing_mm))
    with (folder / "nodules.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_nih(folder: Path) -> None:
    """Write a few films in the folders and with the table of NIH ChestX-ray14."""
    from chess_cxr.tasks.bones.pairs import draw_phantom_pair

    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    )
    lines = [header]
    for number in range(8):
        name = f"{number // 2 + 1:08d}_{number % 2:03d}.png"
        finding = "Nodule|Effusion" if number % 2 else "No Finding"
        lines.append(f"{name},{finding},{number % 2},{number // 2 + 1},5{number},F,PA,{SIDE},{SIDE},2.5,2.5")
        write_png(folder / "images_001" / "images" / name, draw_phantom_pair(number // 2, number, SIDE).film_HW * 255)
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")
    names = [line.split(",")[0] for line in lines[1:]]
    (folder / "train_val_list.txt").write_text("\n".join(names[:6]))
    (folder / "test_list.txt").write_text("\n".join(names[6:]))


def write_short_config(path: Path) -> None:
    """Write a configuration of three steps with timm's smallest ResNet at 32 pixels."""
    short = {
        "preset": "short",
        "method": {"name": "moco_v2", "architecture": "test_resnet", "embedding": 16, "queue": 32, "norm_groups": 2},
        "views": {"size": 32},
        "training": {"steps": 3, "batch": 16, "log_every": 1, "probe_every": 3, "checkpoint_every": 3},
        "pixels": {"mean": 0.5, "std": 0.25},
    }
    path.write_text(json.dumps(short, indent=1))


def write_suite(path: Path) -> None:
    """Write a small suite of the benchmark."""
    path.write_text(
        'fractions = [0.5, 1.0]\ndraws = 2\nreplicates = 50\nreference = "ours"\nsynthetic = true\n\n'
        '[encoders]\nours = "encoders/first"\npixels = "pixels:8"\n\n[tasks.findings]\nstore = "films.lance"\n'
    )


def write_chess_checkpoint(path: Path) -> None:
    """Write an untrained ResNet-50 under the names that the published checkpoint has."""
    import torch

    from chess_cxr.encoders.encoder import build_network

    head = {"fc.0.weight": (2048, 2048), "fc.0.bias": (2048,), "fc.2.weight": (128, 2048), "fc.2.bias": (128,)}
    weights = build_network("resnet50", 1, seed=0).state_dict()
    weights |= {name: torch.zeros(1).expand(shape) for name, shape in head.items()}
    state = {f"module.encoder_{which}.{name}": tensor for which in "qk" for name, tensor in weights.items()}
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": state}, path)


def write_png(path: Path, grey_HW: Any) -> None:
    """Write an 8-bit grey PNG."""
    import numpy as np
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(grey_HW).astype(np.uint8)).save(path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "films": write_films,
    "labels.csv": write_labels,
    "healthy": write_healthy,
    "lungs": write_lungs,
    "masks": write_masks,
    "bse_jsrt": write_bse_jsrt,
    "jsrt": write_jsrt,
    "ct_nodules": write_ct_nodules,
    "ChestX-ray14": write_nih,
    "short.json": write_short_config,
    "suite.toml": write_suite,
    "chess.pth.tar": write_chess_checkpoint,
}

if __name__ == "__main__":
    WRITERS[sys.argv[1]](Path(sys.argv[1]))
