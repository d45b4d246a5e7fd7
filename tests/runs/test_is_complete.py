"""What the scripts of runs/ go by when they are started again: runs/is_complete.py."""

from pathlib import Path

from is_complete import is_complete

from chess_cxr.store import begin_store


def test_a_store_is_complete_once_its_ingest_has_ended(tmp_path: Path) -> None:
    place = tmp_path / "films.lance"
    assert not is_complete(str(place))
    writer = begin_store(place, ["nodule"], "films")
    assert place.exists() and not is_complete(str(place))
    writer.finish()
    assert is_complete(str(place))
