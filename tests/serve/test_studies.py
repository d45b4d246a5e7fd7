"""Whole studies and series by address, from a real Orthanc; results of this package in them are no films."""

import json
from pathlib import Path

import pytest

from pacs_node import find_port, is_absent, run_node, run_orthanc, wait_until, write_radiograph
from served import Reply, Served, serve, write_findings_model

pytestmark = pytest.mark.skipif(is_absent("Orthanc", "storescp"), reason="no Orthanc (Debian: orthanc-dicomweb)")


def ask(served: Served, address: str) -> Reply:
    return served.post("/v1/predict", json.dumps({"dicomweb": address}).encode(), "application/json")


def test_a_study_and_a_series_are_answered_film_by_film(tmp_path: Path) -> None:
    films = [write_radiograph(tmp_path / "in" / f"{n}.dcm", n) for n in (1, 2)]
    model = write_findings_model(tmp_path / "findings")
    with run_orthanc(tmp_path / "orthanc", find_port()) as orthanc:
        host = f"127.0.0.1:{orthanc.http_port}"
        root = f"{orthanc.url}/dicom-web/studies/1.2.826.0.1.7.1"
        with serve(tmp_path, model, "--dicomweb-hosts", host, "--most-films", "6") as served:
            assert ask(served, root).json()["detail"] == "there is no radiograph at this address"
            for film in films:
                orthanc.store(film)
            alone = [served.post("/v1/predict", film.read_bytes()).json()["answers"][0] for film in films]
            with run_node(tmp_path / "spool", f"{orthanc.url}/dicom-web", pull=f"{orthanc.url}/dicom-web"):
                wait_until(lambda: orthanc.count_instances() == 8, 60, tmp_path / "spool")  # with six results
            for address in (root, f"{root}/series/1.2.826.0.1.7.1.1"):
                answers = ask(served, address).json()["answers"]
                assert [answer["source"] for answer in answers] == [
                    f"series/1.2.826.0.1.7.1.1/instances/1.2.826.0.1.7.1.1.{n}" for n in (1, 2)
                ]
                assert [answer["findings"] for answer in answers] == [answer["findings"] for answer in alone]
            orthanc.store(write_radiograph(tmp_path / "in" / "3.dcm", 3))
            problem = ask(served, root)
            assert (problem.status, problem.json()["detail"]) == (413, "a request has at most 6 films")
            assert ask(served, f"{root}/series").status == 422
