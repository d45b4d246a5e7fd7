"""The list of licences, on the packages that are installed here."""

import json
import sys
from importlib.metadata import distribution
from pathlib import Path

import licences
import pytest


def test_the_core_is_walked_to_its_end_and_an_extra_adds_its_own() -> None:
    core = licences.walk(["torch>=2", "pylance", "no-such-package", "tomli; python_version < '3'"])
    assert {"torch", "sympy", "mpmath", "pyarrow"} <= core.keys()  # mpmath: torch needs sympy, which needs it
    assert core["no-such-package"] is None and "tomli" not in core
    assert "fastapi" not in core
    assert licences.walk(["dask[complete]"]).keys() > licences.walk(["dask"]).keys()


@pytest.mark.parametrize("said", ["GPL-3.0-or-later", "LGPLv2.1+", "GNU Affero General Public License v3", "EUPL-1.2"])
def test_copyleft_is_recognised(said: str) -> None:
    assert licences.STRONG.search(said) and not licences.WEAK.search(said)


def test_the_page_and_the_bill_list_every_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["licences.py", "--sbom", str(tmp_path / "sbom.json")])
    licences.main()
    page = capsys.readouterr().out
    assert f"| numpy | {distribution('numpy').version} | BSD-3-Clause" in page and "## Extra `serve`" in page
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {part["purl"] for part in bill["components"]}
    assert f"pkg:pypi/torch@{distribution('torch').version}" in listed and len(listed) == len(bill["components"])


def test_a_package_under_copyleft_in_the_core_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["licences.py"])
    monkeypatch.setattr(licences, "STRONG", licences.WEAK)
    with pytest.raises(SystemExit, match="copyleft in the core: .*tqdm"):
        licences.main()
