"""Checks on single values of a COCO file, which may hold anything."""

import math
from pathlib import PureWindowsPath
from typing import Any

from sparsedet.detection.data.findings import BBox, Findings, printable

MAX_ID = 2**63 - 1  # evaluators keep ids in 64 bits

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}
_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}


def name_of(value: Any) -> str:
    """Return what `value` is, in words."""
    return _NAMES[type(value)]


def place_of(key: str, index: int, entry: Any) -> str:
    """Name an entry of the list `key` by its id, or by its place in the list where it has none."""
    if isinstance(entry, dict) and "id" in entry:
        return f"{_SINGULAR[key]} {printable(entry['id'])}"
    return f"{key}[{index}]"


def has_keys(entry: Any, kinds: dict[str, type], kind: str, where: str, findings: Findings) -> bool:
    """Return whether `entry` is an object with these keys of these types; what is not is noted as a fault of `kind`."""
    if not isinstance(entry, dict):
        findings.fault(kind, where, "an object", name_of(entry), "Correct the entry.")
        return False
    before = len(findings.faults)
    for key, expected in kinds.items():
        value = entry.get(key)
        if key not in entry:
            findings.fault(kind, where, f"the key '{key}'", f"the keys {sorted(entry)}", "Add it.")
        elif not is_a(value, expected):
            expectation = f"'{key}' to be {_NAMES[expected]}"
            if expected in (int, str) and isinstance(value, expected) and not isinstance(value, bool):
                expectation += " of 64 bits" if expected is int else " in valid Unicode"
            findings.fault(kind, where, expectation, repr(value) if isinstance(value, str) else value, "Correct it.")
        elif key == "id" and kind != "annotation-entry" and value is not None and value < 0:  # those are numbered anew
            findings.fault(kind, where, "an id of 0 or more, as evaluators need it", value, "Correct it.")
    return len(findings.faults) == before


def is_a(value: Any, expected: type) -> bool:
    """Return whether `value` is of type `expected` and usable: integers in 64 bits, text that can be written."""
    if not isinstance(value, expected) or isinstance(value, bool):
        return False
    if isinstance(value, str):
        return not any("\ud800" <= char <= "\udfff" for char in value)
    return not isinstance(value, int) or abs(value) <= MAX_ID


def is_number(value: Any) -> bool:
    """Return whether `value` is a finite number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= MAX_ID
    return isinstance(value, float) and math.isfinite(value)


def as_bbox(value: Any) -> BBox | None:
    """Return `value` as (x, y, width, height), or None where it is no list of 4 finite numbers."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        return None
    x, y, width, height = map(float, value)
    return x, y, width, height


def escape_in(file_name: str) -> str | None:
    """Return how `file_name` leads out of the folder of the images, or None where it does not.

    Names are judged as on every system, so that a file is no less safe on another.
    """
    path = PureWindowsPath(file_name)
    if path.drive or path.root:
        return "an absolute path"
    if ".." in path.parts:
        return "a path with '..'"
    return "a path with a null character" if "\0" in file_name else None
