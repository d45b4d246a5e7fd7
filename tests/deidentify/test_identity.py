import hashlib
import hmac
import math
import os
import re
import stat
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from chess_cxr.deidentify.identity import (
    cap_age,
    check_key_place,
    hash_id,
    hash_uid,
    limit_spacing,
    name_manufacturer,
    read_id_key,
    read_year,
    shift_date,
    shift_day,
)
from chess_cxr.records import UsageError

KEY = b"a key of more than sixteen bytes"
ASK = "from chess_cxr.deidentify.identity import read_id_key; print(read_id_key().hex())"


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
    with pytest.raises(UsageError, match="there is no key file .*; make one with"):
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


def test_a_uid_becomes_one_new_uid_of_the_form_that_the_standard_gives_to_uuids() -> None:
    made = hash_uid(KEY, "1.2.840.113619.2.1")
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{30,38}", made)
    assert int(made[5:]) < 2**128
    assert made == hash_uid(KEY, "1.2.840.113619.2.1")
    assert len({made, hash_uid(KEY, "1.2.840.113619.2.2"), hash_uid(KEY + b"!", "1.2.840.113619.2.1")}) == 3


def test_days_between_studies_of_one_patient_are_exact() -> None:
    days = ["20191231", "20200101", "20200301", "21800506"]
    shifted = [shift_day(KEY, "MRN-1", day) for day in days]
    true = [(date.fromisoformat(day) - date.fromisoformat(days[0])).days for day in days]
    assert [day - shifted[0] for day in shifted] == true
    copies = [date.fromisoformat(shift_date(KEY, "MRN-1", day)) for day in days]
    assert [(day - copies[0]).days for day in copies] == true


def test_the_secret_days_of_patients_and_of_keys_have_nothing_to_do_with_each_other() -> None:
    days = [shift_day(KEY, f"MRN-{number}", "20200101") for number in range(2000)]
    assert len(set(days)) > 1950
    # Uniform over 65,536 days: of 2,000 draws each eighth holds 250, and four standard deviations are 60.
    first = date(2020, 1, 1).toordinal() - date(1900, 1, 1).toordinal()
    eighths = [int((first - day) // 8192) for day in days]
    assert all(abs(eighths.count(eighth) - 250) < 60 for eighth in range(8))
    others = [shift_day(KEY[::-1], f"MRN-{number}", "20200101") for number in range(2000)]
    assert sum(one == other for one, other in zip(days, others, strict=True)) < 5


def test_a_moved_date_is_at_least_a_century_off_and_fits_64_bit_timestamps() -> None:
    years = [int(shift_date(KEY, f"MRN-{number}", "20200101")[:4]) for number in range(2000)]
    assert min(years) >= 1678
    assert max(years) <= 1920


@pytest.mark.parametrize(
    "broken", ["", "2020", "20201301", "20200230", "2020-01-01", "00010101", "18000101", "DOE^JANE"]
)
def test_no_date_or_a_broken_one_is_an_unknown_day(broken: str) -> None:
    assert math.isnan(shift_day(KEY, "MRN-1", broken))
    assert math.isnan(read_year(broken))
    assert shift_date(KEY, "MRN-1", broken) == ""


def test_the_year_is_that_of_the_date() -> None:
    assert read_year("20200131") == 2020
    assert read_year(" 18951108 ") == 1895


def test_ages_above_89_become_90_and_others_stay() -> None:
    assert [cap_age(age) for age in (0.0, 0.01, 45.5, 89.0, 89.1, 90.0, 104.0)] == [0, 0.01, 45.5, 89, 90, 90, 90]
    assert math.isnan(cap_age(math.nan))


def test_a_spacing_that_no_film_has_is_unknown_and_others_have_four_digits() -> None:
    assert [limit_spacing(spacing_mm) for spacing_mm in (0.143, 0.12345678, 13.4)] == [0.143, 0.1235, 13.4]
    assert all(math.isnan(limit_spacing(wrong)) for wrong in (907418263.0, 0.0, -0.2, 21.0, math.inf, math.nan))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SIEMENS", "Siemens"),
        ("SIEMENS Healthineers FD-X", "Siemens"),
        ("Philips Medical Systems", "Philips"),
        ("PhilipsMedicalSystems", "Philips"),
        ("ImagingDynamicsCompanyLtd", "Imaging Dynamics"),
        ('"GE Healthcare"', "GE"),
        ("G.E. Medical Systems", "GE"),
        ("Fuji Photo Film Co.,Ltd.", "Fujifilm"),
        ("FUJIFILM Corporation", "Fujifilm"),
        ("KONICA MINOLTA", "Konica Minolta"),
        ("Canon Inc.\0", "Canon"),
        ("CARESTREAM HEALTH", "Carestream"),
        ("AGFA", "Agfa"),
        ("Agfa-Gevaert", "Agfa"),
        ("", ""),
        (" \0", ""),
        ("Gertrude Doe", "other"),
        ("Agfaldo Doe", "other"),
        ("MRN 123 Siemens", "other"),
    ],
)
def test_a_manufacturer_is_named_from_a_closed_list(text: str, name: str) -> None:
    assert name_manufacturer(text) == name


def test_a_key_within_the_data_is_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, keys = tmp_path / "data", tmp_path / "keys"
    (data / "deep").mkdir(parents=True)
    keys.mkdir()
    for path in (data / "deep" / "id.key", keys / "id.key"):
        path.write_bytes(KEY)
    (tmp_path / "link").symlink_to(data)
    for place in (data, data / "deep", tmp_path, tmp_path / "link"):
        with pytest.raises(UsageError, match="keep it away from the data"):
            check_key_place(data / "deep" / "id.key", [keys, place])
    with pytest.raises(UsageError, match="keep it away"):
        check_key_place(tmp_path / "link" / "deep" / "id.key", [data])
    check_key_place(keys / "id.key", [data, tmp_path / "link", tmp_path / "new.lance", "s3://bucket/films"])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(data))
    monkeypatch.delenv("CHESS_CXR_ID_KEY", raising=False)
    with pytest.raises(UsageError, match="keep it away"):
        check_key_place(None, [data])
    monkeypatch.setenv("CHESS_CXR_ID_KEY", KEY.decode())
    check_key_place(None, [data])


def test_a_key_beside_a_film_a_store_or_copies_is_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data", "keys"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "id.key").write_bytes(KEY)
    (tmp_path / "data" / "film.dcm").write_bytes(b"film")
    (tmp_path / "keys" / "link.dcm").symlink_to(tmp_path / "data" / "film.dcm")
    (tmp_path / "data" / "link.key").symlink_to(tmp_path / "keys" / "id.key")
    for key, place in (("id.key", "film.dcm"), ("id.key", "new.lance"), ("id.key", "copies"), ("link.key", "film.dcm")):
        with pytest.raises(UsageError, match="lies beside .* keep it away from the data: move it to a folder"):
            check_key_place(tmp_path / "data" / key, [tmp_path / "data" / place])
    with pytest.raises(UsageError, match="lies beside"):
        check_key_place(tmp_path / "data" / "id.key", [tmp_path / "keys" / "link.dcm"])
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(UsageError, match=r"the id key id\.key lies beside films\.lance"):
        check_key_place(Path("id.key"), ["s3://bucket/films", Path("films.lance")])
    check_key_place(Path("../keys/id.key"), [Path("films.lance"), Path("film.dcm")])


def test_the_users_own_key_goes_with_films_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "CHESS_CXR_ID_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "films").mkdir()
    (tmp_path / "film.dcm").write_bytes(b"film")
    check_key_place(None, [tmp_path / "films", tmp_path / "film.dcm", tmp_path / "films.lance", tmp_path / "copies"])


def test_a_key_that_is_a_pipe_a_device_a_folder_or_endless_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    for path in (tmp_path / "pipe", tmp_path / "large", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="is not a regular file of at most 65536 bytes"):
            read_id_key(path)
