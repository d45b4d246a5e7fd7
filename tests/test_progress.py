import os
import pty
import re
import subprocess
import sys

import pytest

from chess_cxr.progress import ProgressBar, StageBars, say_seconds, build_step_note
from chess_cxr.training.loop import StepReport


def test_without_a_terminal_progress_is_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("ingest", 3, "films", every=0.0) as bar:
        bar.advance(note="first")
        bar.advance(2)
    shown = capsys.readouterr()
    assert shown.out == "" and "\x1b" not in shown.err
    first, second, last = shown.err.splitlines()
    assert first.startswith("ingest: 1/3 films, ") and first.endswith(" left  first")
    assert second.startswith("ingest: 3/3 films, ") and "left" not in second
    assert last.startswith("ingest: 3/3 films, ")


def test_lines_keep_their_distance(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("ingest", 1000, "films", every=3600.0) as bar:
        for _ in range(1000):
            bar.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("ingest", 2, "films", quiet=True, every=0.0) as bar:
        bar.advance(2)
    with StageBars(quiet=True) as bars:
        bars.show("embed", 1, 1)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_failed_work_does_not_announce_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), ProgressBar("ingest", 2, "films"):
        raise RuntimeError
    assert capsys.readouterr().err == ""


def test_work_done_earlier_does_not_count_as_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("pretrain", 10_000_000, "steps") as bar:
        bar.start_from(9_000_000)
    assert capsys.readouterr().err.startswith("pretrain: 9000000/10000000 steps, 0.0/s, 0:00")


def test_stages_follow_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with StageBars() as bars:
        for done in (1, 2):
            bars.show("embed ours", done, 2)
        bars.show("probe", 4, 5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["embed ours: 2/2", "probe: 4/5"]


def test_a_terminal_gets_a_live_bar() -> None:
    code = "from chess_cxr.progress import ProgressBar\nwith ProgressBar('ingest', 2, 'films') as bar: bar.advance(2)"
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, env=environment)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\x1b[" in shown and "2/2 films" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (7325, "2:02:05")])
def test_durations_are_read_like_a_clock(seconds: float, text: str) -> None:
    assert say_seconds(seconds) == text


def test_a_step_that_was_skipped_has_no_loss_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("pretrain", 2, "steps", every=0.0) as bar:
        on_step, probe = build_step_note(bar), {"probe/knn_auroc": 0.7, "probe/effective_rank": 9.0}
        on_step(StepReport(1, {}, {}, 1e-3, 0.0, 0.1, "the encoder loss became nan", 1), {})
        on_step(StepReport(2, {"encoder": 1.5}, {"encoder": 1.0}, 1e-3, 0.0, 0.1), probe)
    first, second, _ = capsys.readouterr().err.splitlines()
    assert first.endswith("step skipped") and second.endswith("loss 1.500  kNN AUROC 0.700  rank 9")


def test_a_line_that_must_be_seen_is_seen_where_progress_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("pretrain", 2, "steps", quiet=True) as bar:
        bar.say("collapse: at step 3")
    assert capsys.readouterr().err == "chess-cxr: collapse: at step 3\n"
