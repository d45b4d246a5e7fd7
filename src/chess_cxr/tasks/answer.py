"""The answer of a classifier to one film: what `predict`, the server's page, REST and DICOM all say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FindingAnswer:
    """The answer to one label.

    probability: 0 … 1, calibrated if the film's answer says so.  threshold: of the operating point; None without one.
    positive: whether the probability reaches the threshold; None without one.
    calibrated: whether this probability was scaled on val films.
    """

    label: str
    probability: float
    threshold: float | None = None
    positive: bool | None = None
    calibrated: bool = False


@dataclass(frozen=True)
class FilmAnswer:
    """The answer to one film.

    model: name of the model folder.  model_sha256: of its weights.  contract_sha256: of the pixels it expects.
    reason: why the film is refused, "" if it is not; then there are no findings.
    flags: doubts about the film, such as "lateral", as the ingest judges them.
    findings: one per label, in the model's order.  calibrated: whether all their probabilities were scaled on val
    films.
    operating_point: name of the point whose thresholds the findings give, "" for none.
    """

    model: str
    model_sha256: str
    contract_sha256: str
    reason: str = ""
    flags: tuple[str, ...] = ()
    findings: tuple[FindingAnswer, ...] = ()
    calibrated: bool = False
    operating_point: str = ""
