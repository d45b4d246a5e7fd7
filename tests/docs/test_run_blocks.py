"""The script that runs the pages' blocks: what it must find, on pages of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "run_blocks.py"


def run(root: Path, page: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Write a README and run its blocks."""
    (root / "README.md").write_text(page)
    words = [sys.executable, str(SCRIPT), "--root", str(root), *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def fence(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```", ""])


def test_every_block_of_this_repository_says_what_it_is() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--list"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "README.md:" in done.stdout and "docs/films.md:" in done.stdout


def test_a_failing_block_is_found_and_the_others_still_run(tmp_path: Path) -> None:
    page = fence("sh", "echo begun", "false", "echo after") + fence("python", "print(1 / 0)") + fence("sh", "true")
    done = run(tmp_path, page)
    assert done.returncode == 1
    assert "3 blocks run, 2 failed, 0 not run" in done.stdout
    assert "begun" in done.stdout and "after" not in done.stdout and "ZeroDivisionError" in done.stdout
    assert "failed: README.md:1\nfailed: README.md:6\n" in done.stdout


@pytest.mark.parametrize("command", ["nothing | cat", 'echo "$NEVER_SET"', "sleep 1 && nothing || exit 3"])
def test_a_command_that_fails_anywhere_fails_its_block(tmp_path: Path, command: str) -> None:
    assert run(tmp_path, fence("sh", command)).returncode == 1


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (fence("", "chess-cxr demo"), "README.md:1: a block without a language"),
        (fence("shel", "true"), "README.md:1: the language 'shel' is not known"),
        ("Words.\n\n    chess-cxr demo\n", "README.md:3: an indented block"),
        ("<!-- not run: -->\n" + fence("sh", "true"), "the marker 'not run' says nothing; give the reason"),
        ("<!-- not run -->\n" + fence("sh", "true"), "the marker 'not run' says nothing; give the reason"),
        ("<!-- notrun: big -->\n" + fence("sh", "true"), "README.md:2: there is no marker 'notrun'"),
        ("<!-- not run: big -->\n\nWords.\n" + fence("sh", "true"), "the marker 'not run' stands above no block"),
        ("<!-- run with: 300 -> 3 -->\n" + fence("sh", "sleep 30"), "names nothing that stands in the block"),
        ("<!-- with: gold -->\n" + fence("sh", "true"), "README.md:2: gold is not in block_material.py"),
        ("```sh\ntrue\n", "README.md:1: the fence is not closed"),
    ],
)
def test_a_page_with_a_fault_is_refused_before_anything_runs(tmp_path: Path, page: str, said: str) -> None:
    done = run(tmp_path, page + fence("sh", "echo it ran"))
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stdout == ""


def test_what_is_not_run_is_listed_with_its_reason(tmp_path: Path) -> None:
    page = "<!-- not run: needs a GPU -->\n" + fence("sh", "false")
    page += "<!-- needs extra: saliency -->\n" + fence("python", "raise SystemExit(3)")
    done = run(tmp_path, page)
    assert done.returncode == 0
    assert "0 blocks run, 0 failed, 2 not run" in done.stdout
    assert "README.md:2" in done.stdout and "needs a GPU" in done.stdout and "needs the extra saliency" in done.stdout
    assert "1 blocks run, 1 failed, 1 not run" in run(tmp_path, page, "--with-extras").stdout


def test_text_json_and_toml_are_not_run_and_lists_may_be_indented(tmp_path: Path) -> None:
    page = fence("text", "false") + fence("json", "{") + "- a point\n\n    more of it\n\n" + fence("toml", "= 1")
    done = run(tmp_path, page)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("0 blocks run")


@pytest.mark.parametrize(
    ("shown", "code"),
    [
        (["$ echo 17 films", "17 films"], 0),
        (["$ echo 17 films", "… films"], 0),
        (["$ echo 17 films", "18 films"], 1),
        (["$ echo 17 films", "17"], 1),
        (["$ echo 17 films"], 1),
        (["$ echo 17 films", "17 films", "18 films"], 1),
        (["$ seq 9", "1", "…", "9"], 0),
        (["$ seq 9", "1", "…", "8"], 1),
        (["$ seq 3", "…"], 0),
        (["$ echo a \\", "  b", "a b", "$ x=5", "$ echo $x", "5"], 0),
        (["$ echo progress >&2"], 0),
        (["$ false"], 1),
        (["$ (exit 3)", "$ echo $?", "3"], 0),
        (["$ exit 0", "$ echo on", "on"], 1),
    ],
)
def test_the_output_of_a_console_is_compared(tmp_path: Path, shown: list[str], code: int) -> None:
    done = run(tmp_path, fence("console", *shown))
    assert done.returncode == code, done.stdout


def test_markers_lay_out_files_and_substitute_in_sight(tmp_path: Path) -> None:
    page = "<!-- file: suite.toml -->\n" + fence("toml", "steps = 3000")
    page += "<!-- before: echo 12 > given -->\n<!-- run with: 3000 -> 3 -->\n" + fence("sh", "test 12 = $(cat given)")
    assert "names nothing" in run(tmp_path, page).stderr
    page = page.replace("test 12", "echo 3000 > n; test 12")
    page += fence("sh", "grep 'steps = 3000' suite.toml", "test $(cat n) = 3")
    page += "<!-- in: elsewhere -->\n" + fence("python", "import os", "assert os.listdir() == []")
    done = run(tmp_path, page)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "    run with: 3000 -> 3\n" in done.stdout


def test_a_page_has_a_folder_and_a_home_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text(fence("sh", "test ! -e made", "test -e ~/.once"))
    page = fence("sh", "touch made ~/.once") + fence("sh", "test -e made")
    done = run(tmp_path, page, "--keep", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "kept" / "pages" / "README" / "made").is_file()
    assert (tmp_path / "kept" / "home" / ".once").is_file()
    assert "docs/other.md:1" not in run(tmp_path, page, "--page", "README.md").stdout


def test_nothing_that_a_block_starts_outlives_it(tmp_path: Path) -> None:
    page = fence("sh", "(sleep 1; touch ~/late) &", "true") + fence("sh", "sleep 2; test ! -e ~/late")
    assert run(tmp_path, page).returncode == 0


@pytest.mark.parametrize(("printed", "code"), [("0.55 of 3", 0), ("0.45 of 3", 0), ("0.65 of 3", 1), ("0.55 of 4", 1)])
def test_decimal_numbers_may_differ_within_what_the_page_says_and_counts_may_not(
    printed: str, code: int, tmp_path: Path
) -> None:
    block = fence("console", f"$ echo {printed}", "0.50 of 3")
    assert run(tmp_path, block).returncode == 1
    assert run(tmp_path, f"<!-- within: 0.1 -->\n{block}").returncode == code


def test_a_tolerance_that_is_no_number_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "<!-- within: a little -->\n" + fence("console", "$ echo 1.0", "1.0"))
    assert done.returncode != 0 and "is no number" in done.stdout + done.stderr
