"""Small trees in the published layout of each public data set, irregularities included.  All of it is generated."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK
from PIL import Image
from pydicom.uid import ComputedRadiographyImageStorage, generate_uid

from dicom_files import write_dicom


def name_columns(text: str) -> list[str]:
    return text.split(",")


CHEXPERT_14 = name_columns(
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


# ---------------------------------------------------------------- files


def draw(seed: int, side: int = 40) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side] / side
    return 0.5 + 0.4 * np.sin((3 + seed % 5) * x + seed) * np.cos(4 * y)


def write_picture(path: Path, bits: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = draw(len(path.name) + sum(path.name.encode()))
    pixels = (grey * 255).astype(np.uint8) if bits == 8 else (grey * 4095).astype(np.uint16)
    Image.fromarray(pixels).save(path, format="JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")


def write_film(path: Path, photometric: str = "MONOCHROME2", patient: str = "", **header: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"SOPClassUID": ComputedRadiographyImageStorage, "SOPInstanceUID": generate_uid(), "StudyInstanceUID": ""}
    told |= {"PatientName": "", "PatientID": patient, "Modality": "DX", "PhotometricInterpretation": photometric}
    write_dicom(path, (draw(sum(path.name.encode())) * 4095).astype(np.uint16), **(told | header))


def write_mha(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray((draw(sum(path.name.encode())) * 4095).astype(np.uint16)), path)


def write_img(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw_img())


@cache
def draw_img() -> bytes:
    return (draw(3, 2048) * 4095).astype(">u2").tobytes()


def write_rubbish(folder: Path) -> None:
    """What archives carry beside films."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("._film.png", "Thumbs.db", ".DS_Store"):
        (folder / name).write_bytes(b"\0rubbish")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    content = out.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def read_csv(path: Path) -> list[list[str]]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return list(csv.reader(io.StringIO(text, newline="")))


def label(**values: str) -> list[str]:
    """The 14 labels of CheXpert, blank but for those given with "_" for the space."""
    told = {name.replace("_", " "): value for name, value in values.items()}
    assert set(told) <= set(CHEXPERT_14)
    return [told.get(name, "") for name in CHEXPERT_14]


# ---------------------------------------------------------------- trees


def write_chexpert(parent: Path) -> Path:
    root, name = parent / "CheXpert-v1.0-small", "CheXpert-v1.0-small"
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_14]
    train = [
        ("train/patient00001/study1/view1_frontal.jpg", "Female", 68, "Frontal", "AP")
        + tuple(label(Cardiomegaly="-1.0", Edema="0.0", Pleural_Effusion="1.0")),
        ("train/patient00001/study1/view2_lateral.jpg", "Female", 68, "Lateral", "") + tuple(label(Edema="0.0")),
        ("train/patient00002/study2/view1_frontal.jpg", "Unknown", 0, "Frontal", "PA") + tuple(label(No_Finding="1.0")),
        ("train/patient00003/study1/view1_frontal.jpg", "Male", 90, "Frontal", "LL") + tuple(label()),  # not on disk
    ]
    valid = [
        ("valid/patient64541/study1/view1_frontal.jpg", "Male", 73, "Frontal", "AP") + tuple(label(Fracture="0.0"))
    ]
    for split, rows in (("train", train), ("valid", valid)):
        write_csv(root / f"{split}.csv", header, [(f"{name}/{row[0]}", *row[1:]) for row in rows])
        for row in rows:
            if "patient00003" not in row[0]:
                write_picture(root / row[0])
    shuffled = ["Study", *reversed(CHEXPERT_14)]
    write_csv(
        root / "groundtruth.csv",
        shuffled,
        [
            ("CheXpert-v1.0/test/patient64741/study1", *reversed(label(Edema="1", Fracture="0"))),
            ("CheXpert-v1.0/test/patient64742/study1", *reversed(label(Edema="0"))),  # not on disk
        ],
    )
    for film in ("view1_frontal.jpg", "view2_lateral.jpg", "._view1_frontal.jpg"):
        write_picture(root / "test/patient64741/study1" / film)
    return root


PLUS = name_columns(
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_narrative,section_clinical_history,section_history,section_comparison,section_technique,"
    "section_procedure_comments,section_findings,section_impression,section_end_of_impression,section_summary,"
    "section_accession_number,age,sex,race,ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split"
)


def write_chexpert_plus(parent: Path) -> Path:
    root, rows = parent / "chexpertplus", []
    for number, (view, split) in enumerate([("frontal", "train"), ("lateral", "train"), ("frontal", "valid")], start=1):
        stem = f"{split}/patient4214{number // 3}/study5/view{number}_{view}"
        row = dict.fromkeys(PLUS, "") | {"path_to_image": f"{stem}.jpg", "path_to_dcm": f"{stem}.dcm", "split": split}
        row |= {"frontal_lateral": view.title(), "ap_pa": "AP" if view == "frontal" else "", "age": "61.0"}
        row |= {"deid_patient_id": f"patient4214{number // 3}", "sex": "Female", "patient_report_date_order": "5"}
        row |= {"report": 'NARRATIVE: "61 years",\n\nline two', "section_impression": "1. NO EDEMA."}
        rows.append([row[name] for name in PLUS])
        write_picture(root / "PNG" / "PNG" / f"{stem}.png")
    write_csv(root / "df_chexpert_plus_240401.csv", PLUS, rows)
    (root / "chexbert_labels").mkdir()
    lines = [
        {"path_to_image": rows[0][0]} | dict.fromkeys(CHEXPERT_14) | {"Edema": 0.0, "Cardiomegaly": -1.0},
        {"path_to_image": rows[2][0]} | dict.fromkeys(CHEXPERT_14) | {"Edema": 1.0},
    ]
    (root / "chexbert_labels/impression_fixed.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def write_mimic(parent: Path) -> Path:
    root, labels = parent / "mimic-cxr-jpg", sorted(CHEXPERT_14)
    films = [
        ("02aa804e-bde0afdd", "10000032", "50414267", "PA", "21800506"),
        ("174413ec-4ec4c1f7", "10000032", "50414267", "LATERAL", "21800506"),
        ("2a2277a9-b0ded155", "10000764", "57375967", "", "21321015"),
        ("68b5c4b1-227d0485", "10000898", "50771383", "AP", "21880123"),
    ]
    header = (
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime"
    )
    sequences = ("ProcedureCodeSequence", "ViewCodeSequence", "PatientOrientationCodeSequence")
    write_csv(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        [*header.split(","), *(f"{name}_CodeMeaning" for name in sequences)],
        [(*f[:3], "CHEST (PA AND LAT)", f[3], 3056, 2544, f[4], "213014.531", "CHEST", "", "Erect") for f in films],
    )
    splits = ["train", "train", "validate", "test"]
    write_csv(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        ["dicom_id", "study_id", "subject_id", "split"],
        [(f[0], f[2], f[1], split) for f, split in zip(films, splits, strict=True)],
    )
    told = {"50414267": {"Edema": "-1.0", "Fracture": "1.0"}, "50771383": {"Lung Opacity": "1.0"}}
    write_csv(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        ["subject_id", "study_id", *labels],
        [
            (patient, study, *(told[study].get(name, "") for name in labels))
            for patient, study in (("10000032", "50414267"), ("10000898", "50771383"))
        ],
    )
    by_hand = ["Airspace Opacity" if name == "Lung Opacity" else name for name in labels]
    write_csv(
        root / "mimic-cxr-2.1.0-test-set-labeled.csv",
        ["study_id", *by_hand],
        [("50771383", *({"Airspace Opacity": "0.0", "Edema": "1.0"}.get(name, "") for name in by_hand))],
    )
    for film, patient, study, *_ in films:
        write_picture(root / f"files/p{patient[:2]}/p{patient}/s{study}/{film}.jpg")
    return root


NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
NIH_ROWS = (
    "00000001_000.png,Cardiomegaly|Emphysema,0,1,{}58{},M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Pleural_Thickening,1,1,{}58{},M,AP,2682,2749,0.143,0.143",
    "00000002_000.png,No Finding,0,2,414,F,PA,2682,2749,0.143,0.143",
    "00000003_000.png,Hernia,0,3,{}81{},F,PA,2682,2749,0.143,0.143",
)


def write_nih(parent: Path, old: bool = False) -> Path:
    """The release of 2020: 11 fields; or the one of 2017: an empty 12th, and ages as "058Y"."""
    root = parent / "ChestXray-NIHCC"
    root.mkdir(parents=True)
    ages = ("0", "Y") if old else ("", "")
    lines = [line.format(*ages) + "," * old for line in (NIH_HEADER, *NIH_ROWS)]
    (root / ("Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv")).write_text("\n".join(lines) + "\n")
    (root / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n")
    (root / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n00000002_000.png")
    (root / "test_list.txt").write_text("00000003_000.png\r\n")
    for folder, name in (("001", "00000001_000"), ("001", "00000001_001"), ("002", "00000002_000")):
        write_picture(root / f"images_{folder}/images/{name}.png")
    write_picture(root / "images_012/images/00000003_000.PNG")
    write_rubbish(root / "images_001/images")
    return root


PADCHEST = name_columns(
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,"
    "Projection,MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,"
    "WindowCenter_DICOM,WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,"
    "ExposureInuAs_DICOM,ExposureTime,RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,"
    "Localizations,LabelsLocalizationsBySentence,labelCUIS,LocalizationsCUIS"
)


def write_padchest(parent: Path) -> Path:
    root, rows = parent / "PadChest", []
    films = [
        ("1001_a.png", "0", "20140915", "st1", "839860488694292331637988235681460987", "1930.0", "F", "PA")
        + ("['pulmonary fibrosis', ' Kyphosis ', '', 'pulmonary fibrosis']",),
        ("1001_b.png", "0", "20140915", "st1", "839860488694292331637988235681460987", "1930.0", "F", "L")
        + ('["normal"]',),
        ("1002.png", "54", "20090102", "st2", "None", "nan", "None", "AP_horizontal", "nan"),
        ("None", "1", "20090102", "None", "None", "", "", "EXCLUDE", "[]"),
        ("1004.png", "1", "20160229", "st4", "77", "2016", "M", "COSTAL", "[]"),  # not on disk
    ]
    for number, film in enumerate(films):
        told = dict.fromkeys(PADCHEST, "") | {"": str(number), "Report": "torax, sin alteraciones .", "ReportID": "1"}
        told |= dict(zip(PADCHEST[1:8], film[:7], strict=True)) | {"Projection": film[7], "Labels": film[8]}
        rows.append([(told | {"Manufacturer_DICOM": "PhilipsMedicalSystems"})[name] for name in PADCHEST])
        if film[0] not in ("None", "1004.png"):
            write_picture(root / film[1] / film[0], bits=16)
    write_csv(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", PADCHEST, rows)
    return root


VINDR = name_columns(
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,"
    "Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,"
    "Lung tumor,Pneumonia,Tuberculosis,Other diseases,No finding"
)


def write_vindr(parent: Path) -> Path:
    root = parent / "vindr-cxr" / "1.0.0"
    readings = [
        ("aaa1", "R1", "ILD", "Nodule/Mass"),
        ("aaa1", "R2", "ILD"),
        ("aaa1", "R3", "Other diseases"),
        *((("aaa2", f"R{reader}", "No finding")) for reader in (8, 9, 10)),
    ]
    write_csv(
        root / "annotations/image_labels_train.csv",
        ["image_id", "rad_id", *VINDR],
        [(film, reader, *(int(name in found) for name in VINDR)) for film, reader, *found in readings],
    )
    test = ["Other disease" if name == "Other diseases" else name for name in VINDR]
    write_csv(
        root / "annotations/image_labels_test.csv",
        ["image_id", *test],
        [("bbb1", *(int(name in ("Other disease", "COPD")) for name in test))],
    )
    box = ["image_id", "class_name", "x_min", "y_min", "x_max", "y_max"]
    write_csv(root / "annotations/annotations_test.csv", box, [("bbb1", "COPD", "", "", "", "")])
    write_film(root / "train/aaa1.dicom", "MONOCHROME1", PatientSex="F", PatientAge="054Y")
    write_film(root / "train/aaa2.dicom")
    write_film(root / "test/bbb1.dicom")
    return root


def write_rsna(parent: Path) -> Path:
    root = parent / "rsna-pneumonia-detection-challenge"
    write_csv(
        root / "stage_2_train_labels.csv",
        ["patientId", "x", "y", "width", "height", "Target"],
        [
            ("0004cfab", "", "", "", "", 0),
            ("00436515", 264.0, 152.0, 213.0, 379.0, 1),
            ("00436515", 562.0, 152.0, 256.0, 453.0, 1),
            ("00569f44", "", "", "", "", 0),
        ],
    )
    write_csv(
        root / "stage_2_detailed_class_info.csv",
        ["patientId", "class"],
        [("0004cfab", "No Lung Opacity / Not Normal"), ("00436515", "Lung Opacity"), ("00436515", "Lung Opacity")]
        + [("00569f44", "Normal")],
    )
    for name in ("0004cfab", "00436515", "00569f44"):
        write_film(root / "stage_2_train_images" / f"{name}.dcm", PatientID=name, ViewPosition="AP", PatientAge="051Y")
    write_film(root / "stage_2_test_images/0000a175.dcm")
    mapping = [
        {"subset_img_id": "0004cfab", "img_id": "00000001_000.png", "orig_labels": ["Mass"]},
        {"subset_img_id": "00436515", "img_id": "00000001_001.png", "orig_labels": []},
        {"subset_img_id": "0000a175", "img_id": "00030805_000.png", "orig_labels": []},
    ]
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mapping))
    return root


def write_siim(parent: Path) -> Path:
    root, stem = parent / "siim-acr", "1.2.276.0.7230010.3.1.4.8323329.{}"
    write_csv(
        root / "train-rle.csv",
        ["ImageId", " EncodedPixels"],
        [
            (stem.format(1), " -1"),
            (stem.format(2), " 514175 10 1008 29 994 30"),
            (stem.format(2), " 595 3 1011 16"),
            (stem.format(3), " -1"),
            (stem.format(3), " -1"),
            (stem.format(9), "-1"),  # not on disk
        ],
    )
    for number in (1, 2, 3, 4):
        write_film(root / f"dicom-images-train/st.{number}/se.{number}" / f"{stem.format(number)}.dcm", patient="p7")
    write_film(root / "dicom-images-test/st.5/se.5" / f"{stem.format(5)}.DCM")
    write_film(root / "sample images" / f"{stem.format(1)}.dcm")  # a copy of a training film
    return root


def write_brax(parent: Path) -> Path:
    root, rows = parent / "brax", []
    for number, (age, view) in enumerate([("85 or more", "L"), ("60", "PA"), ("", "")]):
        below = f"id_{number}/Study_1.{number}/Series_1.{number}/image-1.{number}"
        told = label(Edema="-1.0") if number == 0 else label(No_Finding="1.0", Support_Devices="0.0")
        rows.append(
            (
                f"Anonymized_DICOMs/{below}.dcm",
                f"images/{below}.png",
                f"id_{number}",
                "M",
                age,
                f"acc{number}",
                "20120304",
            )
            + (*told, view, 2544, 3056, 2)
        )
        write_picture(root / f"images/{below}.png")
    start = ["DicomPath", "PngPath", "PatientID", "PatientSex", "PatientAge", "AccessionNumber", "StudyDate"]
    end = ["ViewPosition", "Rows", "Columns", "Manufacturer"]
    write_csv(root / "master_spreadsheet_update.csv", [*start, *CHEXPERT_14, *end], rows)
    return root


JSRT_RECORDS = (
    "JPCLN001.IMG\t5\t15\t53\tMale\t1634\t692\tmalignant\tl.upper lobe\tlung cancer\t",
    "JPCLN002.IMG\t1\t30\t?\tFemale\t1614\t1090\tbenign\tl.upper lobe(S5)\tpulmonary hematoma",
)


def write_jsrt(parent: Path) -> Path:
    root = parent / "JSRT"
    write_img(root / "Nodule154images/JPCLN001.IMG")
    write_img(root / "Nodule154images/JPCLN002.IMG")
    write_img(root / "NonNodule93images/JPCNN001.img")
    write_img(root / "NonNodule93images/JPCNN002.IMG")  # in no table
    (root / "Clinical_Information").mkdir()
    (root / "Clinical_Information/CLNDAT_EN.txt").write_text(JSRT_RECORDS[0] + "\r\n" + JSRT_RECORDS[1] + "\r\n")
    (root / "Clinical_Information/CNNDAT_EN.TXT").write_text("JPCNN001.IMG\t24\tFemale\tnon-nodule\r\n")
    return root


def write_bse_jsrt(parent: Path) -> Path:
    root = parent / "xray-bone-shadow-supression"
    for folder in ("JSRT/JSRT", "BSE_JSRT/BSE_JSRT"):
        for name in ("JPCLN001.png", "JPCNN002.png"):
            write_picture(root / folder / name)
    write_picture(root / "JSRT/JSRT/JPCNN003.PNG")  # without partner
    write_picture(root / "augmented/augmented/source/1.png")
    write_rubbish(root / "BSE_JSRT/BSE_JSRT")
    return root


def write_shenzhen(parent: Path) -> Path:
    root = parent / "ChinaSet_AllFiles"
    readings = {
        "CHNCXR_0001_0": "male 45yrs\nnormal",
        "CHNCXR_0044_0": "femal 32yrs\nnormal",
        "CHNCXR_0115_0": "male 16month\nnormal",
        "CHNCXR_0202_0": "female24yrs\r\nnormal",
        "CHNCXR_0327_1": "Male , 29yrs  \t\nbilateral secondary PTB",
    }
    (root / "ClinicalReadings").mkdir(parents=True)
    for stem, text in readings.items():
        write_picture(root / "CXR_png" / f"{stem}.png")
        (root / "ClinicalReadings" / f"{stem}.txt").write_text(text)
    write_picture(root / "CXR_png/CHNCXR_0662_1.PNG")  # without reading
    write_rubbish(root / "CXR_png")
    return root


def write_montgomery(parent: Path) -> Path:
    root = parent / "MontgomerySet"
    readings = {
        "MCUCXR_0001_0": "Patient's Sex: F \nPatient's Age: 027Y\nnormal",
        "MCUCXR_0162_1": "Patient's Sex: M \r\nPatient's Age: 049Y\r\ncavitary infiltrate",
        "MCUCXR_0166_1": "Patient's Sex: M \nPatient's Age: 049Y\nNO REPORT (same pt as MCUCXR_0162_1)",
    }
    (root / "ClinicalReadings").mkdir(parents=True)
    for stem, text in readings.items():
        for folder in ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask"):
            write_picture(root / folder / f"{stem}.png")
        (root / "ClinicalReadings" / f"{stem}.txt").write_text(text)
    write_rubbish(root / "CXR_png")
    return root


def write_node21(parent: Path) -> Path:
    root = parent / "cxr_images" / "proccessed_data"
    write_csv(
        root / "metadata.csv",
        ["", "height", "img_name", "label", "width", "x", "y"],
        [
            (0, 0, "c0001.mha", 0, 0, 0, 0),
            (1, 60, "n0001.mha", 1, 55, 310, 520),
            (2, 40, "n0001.mha", 1, 44, 700, 410),
        ],
    )
    for name in ("c0001.mha", "n0001.mha"):
        write_mha(root / "images" / name)
    return root


TREES: dict[str, Callable[[Path], Path]] = {
    "chexpert": write_chexpert,
    "chexpert-plus": write_chexpert_plus,
    "mimic-cxr-jpg": write_mimic,
    "nih-chestxray14": write_nih,
    "padchest": write_padchest,
    "vindr-cxr": write_vindr,
    "rsna-pneumonia": write_rsna,
    "siim-acr": write_siim,
    "brax": write_brax,
    "jsrt": write_jsrt,
    "bse-jsrt": write_bse_jsrt,
    "shenzhen": write_shenzhen,
    "montgomery": write_montgomery,
    "node21": write_node21,
}
# The films of each tree that its tables name and the disk lacks.
ABSENT = {
    "chexpert": 2,  # one of train.csv, one study of groundtruth.csv
    "padchest": 2,  # one not there, one without a name
    "siim-acr": 1,
}
