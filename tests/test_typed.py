"""Programs of users are checked by mypy and by Pyright against our annotations, from outside the package."""

import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = Path(__file__).with_name("typed_client.py")
CHECKERS = {
    "mypy": ["-m", "mypy", "--strict", "--cache-dir"],
    "pyright": ["-m", "basedpyright", "--level", "error", "--pythonpath", sys.executable],
}
MISTAKES = {
    'cxr.embed("cxr-small", 3)': "embed",
    'cxr.load_classifier("findings").predict(film.pixels).absent': "absent",
    "cxr.PretrainConfiguration": "PretrainConfiguration",
}


def check(checker: str, program: Path) -> subprocess.CompletedProcess[str]:
    """Run a type checker on a program where none of our settings is found."""
    words = [sys.executable, *CHECKERS[checker]]
    words += [str(program.parent / "cache")] if checker == "mypy" else []
    return subprocess.run([*words, program.name], cwd=program.parent, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_program_that_uses_the_package_is_well_typed_and_mistakes_are_seen(checker: str, tmp_path: Path) -> None:
    program = tmp_path / "client.py"
    program.write_text(CLIENT.read_text())
    done = check(checker, program)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = len(program.read_text().splitlines())
    program.write_text(CLIENT.read_text() + "".join(f"print({mistake})\n" for mistake in MISTAKES))
    told = check(checker, program).stdout
    for number, word in enumerate(MISTAKES.values(), lines + 1):
        assert any(f"client.py:{number}:" in line and "error" in line for line in told.splitlines()), (word, told)
