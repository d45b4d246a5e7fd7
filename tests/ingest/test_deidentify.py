import hashlib
import hmac
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from chess_cxr.ingest.deidentify import hash_id, read_id_key
from chess_cxr.records import UsageError

KEY = b"a key of more than sixteen bytes"
ASK = "from chess_cxr.ingest.deidentify import read_id_key; print(read_id_key().hex())"


def ask(home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    return subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=300)


def test_a_hash_is_the_hmac_of_its_kind_and_text() -> None:
    expected = hmac.new(KEY, b"patient\0MRN-1", hashlib.sha256).hexdigest()
    hashed = hash_id(KEY, "patient", "MRN-1")
    assert expected.startswith(hashed)
    assert re.fullmatch("[0-9a-f]{24}", hashed)


def test_one_text_hashes_differently_by_kind_by_key_and_by_spelling() -> None:
    hashes = [hash_id(KEY, "uid", "1"), hash_id(KEY, "patient", "1"), hash_id(KEY, "study", "1")]
    hashes += [hash_id(KEY + b"!", "uid", "1"), hash_id(KEY, "uid", "01")]
    assert len(set(hashes)) == len(hashes)


def test_an_unknown_identifier_stays_unknown() -> None:
    assert hash_id(KEY, "patient", "") == ""


def test_a_file_name_that_is_no_unicode_can_be_hashed() -> None:
    assert len(hash_id(KEY, "uid", "film-\udcff.png")) == 24


def test_a_key_file_that_is_named_comes_first(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY + b"\n")
    assert read_id_key(tmp_path / "key") == KEY


def test_the_environment_comes_before_the_users_own_key(tmp_path: Path) -> None:
    answer = ask(tmp_path, CHESS_CXR_ID_KEY=KEY.decode())
    assert bytes.fromhex(answer.stdout) == KEY
    assert not list(tmp_path.iterdir())


def test_the_users_own_key_is_made_once_and_readable_by_nobody_else(tmp_path: Path) -> None:
    first, second = ask(tmp_path), ask(tmp_path)
    path = tmp_path / ".config" / "chess-cxr" / "id.key"
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert len(bytes.fromhex(first.stdout)) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [child.name for child in path.parent.iterdir()] == ["id.key"]


def test_two_users_have_different_keys(tmp_path: Path) -> None:
    assert ask(tmp_path / "one").stdout != ask(tmp_path / "two").stdout


def test_the_configuration_folder_of_the_desktop_is_honoured(tmp_path: Path) -> None:
    ask(tmp_path / "home", XDG_CONFIG_HOME=str(tmp_path / "settings"))
    assert (tmp_path / "settings" / "chess-cxr" / "id.key").is_file()
    assert not (tmp_path / "home").exists()


def test_a_key_that_is_absent_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the id key"):
        read_id_key(tmp_path / "absent")


@pytest.mark.parametrize("key", [b"", b"short", b"   \n"])
def test_a_key_that_is_too_short_is_wrong_use(tmp_path: Path, key: bytes) -> None:
    (tmp_path / "key").write_bytes(key)
    with pytest.raises(UsageError, match="shorter than 16 bytes"):
        read_id_key(tmp_path / "key")


def test_a_folder_that_cannot_hold_the_key_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = ask(tmp_path, XDG_CONFIG_HOME=str(tmp_path / "file"))
    assert "cannot write a new id key" in answer.stderr.splitlines()[-1]
