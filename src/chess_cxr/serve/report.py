"""Write a model's answer as a structured report: PS3.16 TID 1500, one measurement group for each finding."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from chess_cxr.derive.dicom import SOFTWARE
from chess_cxr.records import import_extra
from chess_cxr.serve.codes import PRIVATE_SCHEME, PRIVATE_SCHEME_NAME, build_private_code, find_code
from chess_cxr.serve.source import describe_software, find_uid, inherit
from chess_cxr.tasks.answer import FilmAnswer, FindingAnswer

REPORT_SERIES = 9901
NOT_A_DEVICE = "Research software, not a medical device"


def build_report(source: Dataset, answer: FilmAnswer) -> Dataset:
    """Build a Comprehensive SR of the answer to a film.

    source: of `read_source`.  Each finding has its probability, its threshold and whether it reaches it, as far as the
    answer gives them; flags and the reason of a refusal stand in a group of their own.
    """
    sr = import_extra("highdicom.sr", "serve", "DICOM results")
    report = sr.MeasurementReport(
        observation_context=_describe_device(sr, answer),
        procedure_reported=codes.LN.XRUnspecifiedBodyRegion,
        imaging_measurements=_list_groups(sr, source, answer),
        title=codes.DCM.ImagingMeasurementReport,
    )
    scheme = import_extra("highdicom.coding_schemes", "serve", "DICOM results").CodingSchemeIdentificationItem(
        PRIVATE_SCHEME, name=PRIVATE_SCHEME_NAME, responsible_organization=SOFTWARE
    )
    document: Dataset = sr.ComprehensiveSR(
        evidence=[source],
        content=report,
        series_instance_uid=find_uid(source.SOPInstanceUID, answer.model_sha256, "report series"),
        series_number=REPORT_SERIES,
        sop_instance_uid=find_uid(source.SOPInstanceUID, answer.model_sha256, "report"),
        instance_number=1,
        is_complete=True,
        manufacturer=SOFTWARE,
        manufacturer_model_name=answer.model[:64],
        software_versions=(version(SOFTWARE), answer.model_sha256[:64]),
        device_serial_number=answer.model_sha256[:16],
        series_description=f"Findings ({SOFTWARE}, research)",
        coding_schemes=[scheme],
    )
    inherit(document, source)
    document.ContributingEquipmentSequence = describe_software(answer.model, answer.model_sha256)
    return document


def _describe_device(sr: Any, answer: FilmAnswer) -> Any:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=find_uid("", answer.model_sha256, "device"),
        name=answer.model,
        manufacturer_name=SOFTWARE,
        model_name=answer.model,
        serial_number=answer.model_sha256,
    )
    return sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device))


def _list_groups(sr: Any, source: Dataset, answer: FilmAnswer) -> list[Any]:
    algorithm = sr.AlgorithmIdentification(
        name=answer.model, version=version(SOFTWARE), parameters=_list_parameters(answer), manufacturer=SOFTWARE
    )

    def build_group(told: str, **content: Any) -> Any:
        uid = find_uid(source.SOPInstanceUID, answer.model_sha256, f"group {told}")
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(uid=uid, identifier=told),
            algorithm_id=algorithm,
            source_images=[sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)],
            **content,
        )

    groups = []
    if doubts := (answer.reason,) if answer.reason else answer.flags:
        told = [sr.QualitativeEvaluation(codes.DCM.QualityFinding, build_private_code(doubt)) for doubt in doubts]
        groups.append(build_group("image quality", finding_type=codes.DCM.ImageQuality, qualitative_evaluations=told))
    for finding in answer.findings:
        told = _judge_finding(sr, finding)
        measured = _measure_finding(sr, finding)
        kind = find_code(finding.label)
        groups.append(
            build_group(finding.label, finding_type=kind, measurements=measured, qualitative_evaluations=told)
        )
    return groups


def _list_parameters(answer: FilmAnswer) -> list[str]:
    return [
        f"weights SHA-256 {answer.model_sha256}",
        f"pixel contract SHA-256 {answer.contract_sha256}",
        f"probabilities {'calibrated' if answer.calibrated else 'not calibrated'}",
        f"operating point {answer.operating_point or 'none'}",
        NOT_A_DEVICE,
    ]


def _measure_finding(sr: Any, finding: FindingAnswer) -> list[Any]:
    measured = [sr.Measurement(codes.DCM.Probability, float(finding.probability), codes.UCUM.NoUnits)]
    if finding.threshold is not None:
        threshold = build_private_code("Threshold")
        measured.append(sr.Measurement(threshold, float(finding.threshold), codes.UCUM.NoUnits))
    return measured


def _judge_finding(sr: Any, finding: FindingAnswer) -> list[Any]:
    if finding.positive is None:
        return []
    value = codes.DCM.Present if finding.positive else codes.DCM.Absent
    return [sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, value)]
