"""Copy the allowed values of a DICOM data set into a new data set."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID_dictionary

from chess_cxr.deidentify.identity import cap_age, hash_uid, name_manufacturer, shift_date
from chess_cxr.deidentify.profile import (
    Age,
    Concepts,
    Day,
    Items,
    Maker,
    Numbers,
    Rule,
    Table,
    Terms,
    Uid,
    find_concept,
)
from chess_cxr.records import Undecodable, parse_age_years

MAX_SEQUENCE_BYTES = 1 << 20
MAX_VALUE_BYTES = 1 << 10
MAX_CODES = 8
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_AGE = re.compile(r"[0-9]{1,3}[DWMY]?")
_BINARY = {"US": "H", "SS": "h"}

Element: TypeAlias = RawDataElement | DataElement


@dataclass(frozen=True)
class Identity:
    """Secret key and owner of the film, from which pseudonyms are made."""

    key: bytes
    owner: str


@dataclass(frozen=True)
class _Place:
    """Element of `source` that is to be copied into `copy` with the value representation `vr`."""

    source: Dataset
    copy: Dataset
    element: Element
    vr: str
    signed: bool
    identity: Identity


def clean_dataset(source: Dataset, rules: Mapping[str, Rule], identity: Identity, signed: bool = False) -> Dataset:
    """Return a new data set with the values that `rules` allow, without any that cannot be read.

    signed: Pixel Representation (0028,0103) of the film, for a `source` without it.
    """
    copy = Dataset()
    # All raw elements first: reading a sequence makes pydicom convert others.
    elements = {name: source.get_item(get_tag(name)) for name in rules if get_tag(name) in source}
    for name, element in elements.items():
        tag, rule = get_tag(name), rules[name]
        allowed = dictionary_VR(tag)
        if element is None or element.VR not in (None, "UN", allowed, *allowed.split(" or ")):
            continue
        if isinstance(element, RawDataElement) and len(element.value or b"") != element.length:
            raise Undecodable("DICOM ends early")
        signed = copy.get("PixelRepresentation", int(signed)) == 1
        vr = _choose_vr(allowed, element, signed)
        value = _CLEANERS[type(rule)](_Place(source, copy, element, vr, signed, identity), rule)
        if value is not None:
            copy.add(DataElement(tag, vr, value))
    return copy


def get_tag(name: str) -> int:
    """Return the tag of a keyword of PS3.6."""
    tag = tag_for_keyword(name)
    assert tag is not None, name
    return int(tag)


def read_texts(element: Element) -> list[str]:
    """Return the values of a text element, none if it is empty or too long for any allowed value."""
    if not element.value:
        return []
    if not isinstance(element.value, bytes):
        return [str(element.value)]
    if len(element.value) > MAX_VALUE_BYTES:
        return []
    return [text.strip(" \0") for text in element.value.decode("latin-1").split("\\")]


def read_word(source: Dataset, name: str) -> str:
    """Return the value of a text attribute that has exactly one, else ""."""
    tag = get_tag(name)
    element = source.get_item(tag) if tag in source else None
    texts = read_texts(element) if element is not None else []
    return texts[0] if len(texts) == 1 else ""


def build_code(value: str, scheme: str, meaning: str) -> Dataset:
    """Build an item of a code sequence (PS3.3 8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _choose_vr(allowed: str, element: Element, signed: bool) -> str:
    """Return one VR of the dictionary's choices: that of the file, else by Pixel Representation (PS3.5 A)."""
    choices = allowed.split(" or ")
    if len(choices) > 1 and element.VR in choices:
        return str(element.VR)
    return choices[0] if len(choices) == 1 else "OW" if "OW" in choices else "SS" if signed else "US"


def _clean_numbers(place: _Place, rule: Numbers) -> Any:
    values = _unpack(place) if place.vr in _BINARY else _read_decimals(place, rule.digits)
    if not _has_multiplicity(len(values), dictionary_VM(place.element.tag), rule.most):
        return None
    if not all(rule.low <= float(value) <= rule.high for value in values):
        return None
    return values if len(values) > 1 else values[0]


def _unpack(place: _Place) -> list[Any]:
    value = place.element.value
    if not isinstance(value, bytes) or len(value) % 2 or len(value) > MAX_VALUE_BYTES:
        return []
    return list(struct.unpack(f"{_find_order(place)}{len(value) // 2}{_BINARY[place.vr]}", value))


def _find_order(place: _Place) -> str:
    return "<" if getattr(place.element, "is_little_endian", True) else ">"


def _read_decimals(place: _Place, digits: int) -> list[Any]:
    """Return decimal or integer strings (PS3.5 6.2), rounded; none if one of them is no number."""
    texts = read_texts(place.element)
    form = _WHOLE if place.vr == "IS" else _DECIMAL
    if not all(form.fullmatch(text) and len(text) <= 16 for text in texts):
        return []
    if not digits:
        return list(texts)
    if place.vr == "IS":
        return [round(int(text), min(0, digits - len(text.lstrip("+-")))) for text in texts]
    return [f"{float(text):.{digits}g}" for text in texts]


def _has_multiplicity(count: int, wanted: str, most: int) -> bool:
    """Whether a number of values fits a value multiplicity (PS3.5 6.4) such as "2" or "1-n"."""
    low, _, high = wanted.partition("-")
    if not high:
        return count == int(low)
    return int(low) <= count <= (int(high) if high.isdigit() else most)


def _clean_terms(place: _Place, rule: Terms) -> Any:
    texts = read_texts(place.element)[: rule.most]
    if not texts or not all(text in rule.allowed for text in texts):
        return None
    return texts if len(texts) > 1 else texts[0]


def _clean_items(place: _Place, rule: Items) -> Any:
    items = _read_items(place)
    kept = [clean_dataset(item, rule.kept, place.identity, place.signed) for item in items[: rule.most + 1]]
    is_whole = all(name in item for item in kept for name in rule.needed)
    return Sequence(kept) if is_whole and 0 < len(kept) <= rule.most else None


def _read_items(place: _Place) -> list[Dataset]:
    element = place.element
    if isinstance(element, RawDataElement) and element.length > MAX_SEQUENCE_BYTES:
        return []
    value = place.source[element.tag].value
    return list(value) if isinstance(value, Sequence) else []


def _clean_concepts(place: _Place, rule: Concepts) -> Any:
    items = _read_items(place)[:MAX_CODES]
    codes = [find_concept(read_word(item, "CodeValue"), read_word(item, "CodingSchemeDesignator")) for item in items]
    kept = [build_code(code.value, code.scheme_designator, code.meaning) for code in codes if code is not None]
    return Sequence(kept) if kept else None


def _clean_uid(place: _Place, rule: Uid) -> Any:
    texts = read_texts(place.element)
    if len(texts) != 1 or not texts[0]:
        return None
    return texts[0] if texts[0] in UID_dictionary else hash_uid(place.identity.key, texts[0])


def _clean_day(place: _Place, rule: Day) -> Any:
    texts = read_texts(place.element)
    return (shift_date(place.identity.key, place.identity.owner, texts[0][:8]) or None) if len(texts) == 1 else None


def _clean_age(place: _Place, rule: Age) -> Any:
    """Write an age, such as "62" in some archives, in the form of PS3.5 6.2."""
    texts = read_texts(place.element)
    if len(texts) != 1 or not _AGE.fullmatch(texts[0]):
        return None
    number, unit = (texts[0][:-1], texts[0][-1]) if texts[0][-1].isalpha() else (texts[0], "Y")
    age_years = parse_age_years(number + unit)
    if math.isnan(age_years):
        return None
    return f"{int(number):03d}{unit}" if cap_age(age_years) == age_years else f"{int(cap_age(age_years)):03d}Y"


def _clean_maker(place: _Place, rule: Maker) -> Any:
    return name_manufacturer(" ".join(read_texts(place.element)))


def _clean_table(place: _Place, rule: Table) -> Any:
    """Copy the 8 or 16-bit entries of a look-up table if their number matches its descriptor (PS3.3 C.11.1.1)."""
    descriptor, value = place.copy.get(rule.descriptor), place.element.value
    if descriptor is None or not isinstance(value, bytes):
        return None
    entries = int(descriptor[0]) % 65_536 or 65_536
    if len(value) not in (2 * entries, entries + entries % 2):
        return None
    return value if place.vr == "OW" else np.frombuffer(value, f"{_find_order(place)}u2").tolist()


_CLEANERS: dict[type, Callable[[_Place, Any], Any]] = {
    Numbers: _clean_numbers,
    Terms: _clean_terms,
    Items: _clean_items,
    Concepts: _clean_concepts,
    Uid: _clean_uid,
    Day: _clean_day,
    Age: _clean_age,
    Maker: _clean_maker,
    Table: _clean_table,
}
