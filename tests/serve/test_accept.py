"""The header Accept, by the examples of RFC 9110, 12.5.1, and what clients really send."""

import pytest

from chess_cxr.serve.accept import choose_kind

DICOM, PNG = "application/dicom", "image/png"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("*/*", DICOM),
        ("", DICOM),
        ("image/png", PNG),
        ("IMAGE/PNG", PNG),
        ("image/*", PNG),
        ("application/dicom, image/png", DICOM),
        ("image/png, */*", PNG),
        ("application/dicom;q=0.1, image/png;q=0.9", PNG),
        ("image/png; q=0, */*", DICOM),
        ("image/*;q=0, application/dicom;q=0", None),
        ('multipart/related; type="application/dicom"', None),
        ("application/json", None),
        ("image/png;q=nonsense,;,;;,", PNG),
    ],
)
def test_the_kind_that_a_client_wants_most_is_chosen(accept: str, chosen: str | None) -> None:
    assert choose_kind(accept, (DICOM, PNG)) == chosen
