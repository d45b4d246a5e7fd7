from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chess_cxr.records import UsageError
from chess_cxr.sources.phantom.film import draw_anatomy, draw_exposure, render_film
from chess_cxr.tasks.bones.sheet import MOST_ROWS, Row, draw_suppression_sheet


def make_rows(count: int = 2, with_truth: bool = True) -> list[Row]:
    """Generated (SYNTHETIC) films with a quarter of the bone left."""
    rows: list[Row] = []
    for seed in range(count):
        shown = render_film(draw_anatomy(seed), draw_exposure(seed), "nodule", 96, with_bone_free=True)
        assert shown.without_bone is not None
        film, truth = (pixels.astype(np.float32) / np.float32(4095) for pixels in (shown.pixels, shown.without_bone))
        rows.append((f"patient {seed}", film, 0.25 * film + 0.75 * truth, truth if with_truth else None))
    return rows


def draw(rows: list[Row], path: Path, synthetic: bool | None = True) -> np.ndarray:
    draw_suppression_sheet(rows, path, synthetic)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_a_row_of_five_panels_stands_for_a_film(tmp_path: Path) -> None:
    one, two = draw(make_rows(1), tmp_path / "one.png"), draw(make_rows(2), tmp_path / "two.png")
    assert one.shape[1] == two.shape[1] == 1150
    assert one.shape[0] + 200 < two.shape[0] < one.shape[0] + 300
    untold = draw(make_rows(1, with_truth=False), tmp_path / "untold.png")
    assert untold.shape[1] == 690


def test_what_is_too_bright_is_red_and_what_is_too_dark_blue(tmp_path: Path) -> None:
    ((name, film, _, truth),) = make_rows(1)
    assert truth is not None
    last = slice(930, 1140)  # the columns of the last panel
    for shift, warm in ((0.1, True), (-0.1, False)):
        picture = draw([(name, film, truth + np.float32(shift), truth)], tmp_path / "tone.png")[40:-90, last]
        red, blue = (picture[..., 0] - picture[..., 2] > 60).mean(), (picture[..., 2] - picture[..., 0] > 60).mean()
        assert (red > 0.5, blue > 0.5) == (warm, not warm)
    perfect = draw([(name, film, truth, truth)], tmp_path / "perfect.png")[40:-90, last]
    assert (abs(perfect[..., 0] - perfect[..., 2]) > 30).mean() < 0.01


def test_the_caption_tells_generated_films_from_real_ones(tmp_path: Path) -> None:
    rows = make_rows(1)
    generated, real = draw(rows, tmp_path / "a.png"), draw(rows, tmp_path / "b.png", synthetic=False)
    changed = np.argwhere((generated != real).any(axis=2))
    assert len(changed) and changed[:, 0].max() < 40  # the caption alone
    unknown = draw(rows, tmp_path / "c.png", synthetic=None)
    assert (unknown[:20] < 128).sum() < (real[:20] < 128).sum()  # fewer words


def test_a_sheet_of_mixed_films_has_room_for_all(tmp_path: Path) -> None:
    ((name, film, result, truth),) = make_rows(1)
    rows: list[Row] = [
        (name, film, result, truth),
        ("a film with a name that is far too long for the panel it stands above", film[:60], result[:60], None),
    ]
    mixed = draw(rows, tmp_path / "mixed.png")
    assert mixed.shape[1] == 1150
    # The second row's third and fifth panels hold no picture.
    lower = mixed[-230:-100]
    assert (lower[:, 480:680] > 250).mean() > 0.9 and (lower[:, 250:440] > 250).mean() < 0.9


def test_a_sheet_repeats_to_the_byte(tmp_path: Path) -> None:
    rows = make_rows(1)
    for name in ("a.png", "b.png"):
        draw_suppression_sheet(rows, tmp_path / name, True)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_cannot_be_drawn_is_refused_and_nothing_written(tmp_path: Path) -> None:
    ((name, film, result, truth),) = make_rows(1)
    path = tmp_path / "sheet.png"
    assert truth is not None
    for rows, words in (
        ([], "1 to 40 films"),
        ([(name, film, result, truth)] * (MOST_ROWS + 1), "1 to 40 films"),
        ([(name, film, result[:50], truth)], "cannot be compared"),
        ([(name, film, result, truth[:50])], "cannot be compared"),
        ([(name, film * np.float32(np.nan), result, truth)], "leaves|NaN"),
        ([(name, (255 * film).astype(np.uint8), result, truth)], "films must be floats"),
    ):
        with pytest.raises(UsageError, match=words):
            draw_suppression_sheet(rows, path, True)
    assert not path.exists()
