"""Draw a contact sheet of generated films: one row a finding, one column a patient.  All films are SYNTHETIC."""

from pathlib import Path

import cv2
from matplotlib.figure import Figure

from chess_cxr.sources.phantom.film import CLASSES, MAX_PIXEL, draw_anatomy, draw_exposure, render_film

PATIENTS = (26, 22, 35, 47)


def draw_sheet(path: Path) -> None:
    """Write the sheet as an 8-bit grey PNG."""
    figure = Figure(figsize=(7.2, 11.4), facecolor="black")
    axes = figure.subplots(len(CLASSES), len(PATIENTS))
    for row, finding in zip(axes, CLASSES, strict=True):
        for axis, patient in zip(row, PATIENTS, strict=True):
            exposure = draw_exposure(1000 * patient + CLASSES.index(finding))
            film = render_film(draw_anatomy(patient), exposure, finding, 512)
            axis.imshow(film.pixels, cmap="gray", vmin=0, vmax=MAX_PIXEL, interpolation="antialiased")
            axis.set_axis_off()
            size = f" {film.diameter_mm:.0f} mm" if film.diameter_mm else ""
            axis.set_title(finding.replace("_", " ") + size, color="white", fontsize=8, pad=2)
    figure.suptitle("SYNTHETIC films: 4 generated patients, 6 findings", color="white", fontsize=10, y=0.995)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.004, top=0.962, wspace=0.02, hspace=0.10)
    figure.savefig(path, dpi=135)
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(path), grey, [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    draw_sheet(Path(__file__).parent / "phantom_sheet.png")
