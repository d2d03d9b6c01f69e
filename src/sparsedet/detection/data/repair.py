"""A repaired copy of an annotation file, and what was changed in it.

The copy holds what training would read from the file, and leaves out what training refuses where nothing better can be
known; the column ``fix`` of `sparsedet.detection.data.kinds` says what happens to each kind. All other keys of the file
stay as they are. Neither the file nor any image is touched.
"""

import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from sparsedet.common.errors import DatasetError, StorageError
from sparsedet.common.files import write_text
from sparsedet.detection.data.check import Split
from sparsedet.detection.data.coco import Annotation, Scan, scan_data
from sparsedet.detection.data.entries import as_bbox, escape_in, is_a, place_of
from sparsedet.detection.data.findings import printable
from sparsedet.detection.data.image_files import decode_files, look_for_files
from sparsedet.detection.data.images import ImageError, read_header
from sparsedet.detection.data.json_file import parse_json, read_bytes

KEPT_AS_IT_IS = frozenset({"image-size-wrong"})  # which of the two sizes the boxes belong to cannot be known


@dataclass(frozen=True)
class Repair:
    """A repaired annotation file.

    Attributes:
        data: its content.
        changes: one line each.
    """

    data: dict[str, Any]
    changes: tuple[str, ...]


def changes_file(copy: Path) -> Path:
    """Return the file beside a repaired `copy` that lists the changes."""
    return copy.with_name(f"{copy.stem}.changes.txt")


def require_new_files(copy: Path) -> None:
    """Raise StorageError where the copy or its list of changes would overwrite something."""
    for path in (copy, changes_file(copy)):
        if path.exists():
            raise StorageError(
                f"--fix: expected the name of a new file, got {path}, which exists. Choose another name."
            )


def write_repaired(split: Split, copy: Path) -> Repair:
    """Write a repaired copy of the annotation file of `split`, and the list of changes beside it.

    Raises:
        DatasetError: the file is no annotation file, or nothing of it is left.
        StorageError: the copy exists, or cannot be written.
    """
    require_new_files(copy)
    result = repair(split)
    write_text(copy, json.dumps(result.data))
    write_text(changes_file(copy), "".join(f"{change}\n" for change in result.changes))
    return result


def repair(split: Split) -> Repair:
    """Return the repaired content of the annotation file of `split`, which was checked and decoded.

    Raises:
        DatasetError: it is no annotation file, or nothing of it is left.
    """
    if split.dataset is None:
        split.findings.raise_faults()
    work = _Work(parse_json(read_bytes(split.path), split.path), split)
    for key, same in (("images", "file_name"), ("categories", "name")):
        _drop_repeated(work, key, same)
    _mend_images(work)
    if split.findings.num_counted("boxes-corners"):
        _turn_corners(work)
    _drop_images(work)
    _normalise(work)
    work.scan()  # raises where nothing is left
    return Repair(work.data, tuple(work.changes))


@dataclass
class _Work:
    data: dict[str, Any]
    split: Split
    changes: list[str] = field(default_factory=list)
    untouched: set[int] = field(default_factory=set)  # ids of images whose annotations stay as they are

    @property
    def images_dir(self) -> Path:
        assert self.split.dataset is not None
        return self.split.dataset.images_dir

    def scan(self) -> Scan:
        for key in ("images", "annotations"):
            if not self.data[key]:
                raise DatasetError(
                    f"{self.split.path}: '{key}': expected entries that a repaired copy can keep, got none: training "
                    "refuses all. `sparsedet data check` without --fix says why; correct the program that wrote them."
                )
        return scan_data(self.data, self.split.path, self.images_dir, max_examples=sys.maxsize)

    def change(self, key: str, index: int, entry: Any, what: str) -> None:
        self.changes.append(f"{place_of(key, index, entry)}: {what}")

    def keep(self, key: str, keeps: Callable[[int, Any], bool]) -> None:
        self.data[key] = [entry for index, entry in enumerate(self.data[key]) if keeps(index, entry)]


def _drop_repeated(work: _Work, key: str, same: str) -> None:
    """Remove entries that have id and `same` of an earlier one."""
    seen: set[tuple[Any, Any]] = set()

    def is_new(index: int, entry: Any) -> bool:
        identity = _get(entry, "id", int), _get(entry, same, str)
        if None in identity:
            return True
        if identity in seen:
            work.change(key, index, entry, "removed, the same entry came before")
            return False
        seen.add(identity)
        return True

    work.keep(key, is_new)


def _mend_images(work: _Work) -> None:
    """Correct file names and sizes where the files tell how."""
    names = _Names(work.images_dir)
    for index, entry in enumerate(work.data["images"]):
        given = _get(entry, "file_name", str)
        if given is None:
            continue
        name = names.correct(given)
        if name is not None and name != given:
            work.change("images", index, entry, f"file_name {printable(given)} -> {printable(name)}")
            entry["file_name"] = name
        if name is not None and not all((_get(entry, key, int) or 0) > 0 for key in ("width", "height")):
            try:
                height, width = read_header(work.images_dir / name).upright_size
            except ImageError:
                continue
            work.change("images", index, entry, f"width and height set to {width}x{height} as the file has them")
            entry.update(width=width, height=height)


class _Names:
    """The names of the files in a folder, and which of them a wrong name may mean."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._alike: dict[str, list[str]] | None = None

    def correct(self, name: str) -> str | None:
        """Return the name of the file that `name` means, or None where that is none in the folder or unclear."""
        if escape_in(name) is not None:
            return self._relative(name)
        if (self._folder / name).is_file():
            return name
        alike = self._index().get(_plain(name), [])
        return alike[0] if len(alike) == 1 else None

    def _relative(self, name: str) -> str | None:
        if "\0" in name:
            return None
        folder = self._folder.resolve()
        path = (folder / name).resolve()
        return path.relative_to(folder).as_posix() if path.is_file() and path.is_relative_to(folder) else None

    def _index(self) -> dict[str, list[str]]:
        if self._alike is None:
            self._alike = {}
            for path in sorted(self._folder.rglob("*")):
                name = path.relative_to(self._folder).as_posix()
                self._alike.setdefault(_plain(name), []).append(name)
        return self._alike


def _plain(name: str) -> str:
    return PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/"))).as_posix().casefold()


def _turn_corners(work: _Work) -> None:
    for index, entry in enumerate(work.data["annotations"]):
        corners = as_bbox(entry.get("bbox")) if isinstance(entry, dict) else None
        if corners is not None:
            x, y, x2, y2 = corners
            entry["bbox"] = [x, y, x2 - x, y2 - y]
            work.change("annotations", index, entry, f"bbox {list(corners)} -> {entry['bbox']}")


def _drop_images(work: _Work) -> None:
    """Remove images that cannot be used, with their annotations."""
    scan = work.scan()
    unusable = look_for_files(scan.dataset, scan.findings)
    undecoded = tuple(image for image in scan.dataset.images if image.id not in work.split.decoded)
    decode_files(replace(scan.dataset, images=undecoded), unusable, scan.findings)
    reasons = _kinds_by_place(scan, ("image-entry", "image-too-large", "image-name-unsafe"))
    reasons |= {f"image {image_id}": kind for image_id, kind in unusable.items() if kind not in KEPT_AS_IT_IS}
    image_ids = (_get(entry, "image_id", int) for entry in work.data["annotations"])
    num_annotations = Counter(image_id for image_id in image_ids if image_id is not None)
    removed: set[int] = set()
    work.untouched.update(image_id for image_id, kind in unusable.items() if kind in KEPT_AS_IT_IS)

    def is_usable(index: int, entry: Any) -> bool:
        reason = reasons.get(place_of("images", index, entry))
        if reason is None:
            return True
        image_id = _get(entry, "id", int)
        count = 0 if image_id is None else num_annotations[image_id]
        name = printable(_get(entry, "file_name", str))
        work.change("images", index, entry, f"{name} removed with {count} annotations, {reason}")
        if image_id is not None:
            removed.add(image_id)
        return False

    work.keep("images", is_usable)
    work.keep("annotations", lambda _, entry: _get(entry, "image_id", int) not in removed)


def _normalise(work: _Work) -> None:
    """Write annotations as training reads them, and remove those that it leaves out or refuses."""
    scan = work.scan()
    reasons = _kinds_by_place(scan, _LEFT_OUT)
    ids = _FreshIds(_get(entry, "id", int) for entry in work.data["annotations"])
    seen: set[tuple[object, ...]] = set()
    annotations: list[Any] = []
    for index, entry in enumerate(work.data["annotations"]):
        annotation = scan.kept.get(index)
        if _get(entry, "image_id", int) in work.untouched:
            annotations.append(entry)
        elif annotation is None:
            place = place_of("annotations", index, entry)
            reason = reasons.get(place) or reasons.get(f"{place} (image {_get(entry, 'image_id', int)})")
            work.change("annotations", index, entry, f"removed, {reason}")
        elif (identity := annotation.identity) in seen:
            work.change("annotations", index, entry, "removed, box-repeated")
        else:
            seen.add(identity)
            annotations.append(_changed(work, index, entry, replace(annotation, id=ids.take(entry["id"]))))
    work.data["annotations"] = annotations


class _FreshIds:
    """Gives each annotation an id of its own: the one it has, where that is above 0 and not taken."""

    def __init__(self, given: Iterable[int | None]) -> None:
        self._given = {number for number in given if number is not None}
        self._taken: set[int] = set()
        self._next = 1

    def take(self, given: int) -> int:
        if given >= 1 and given not in self._taken:
            self._taken.add(given)
            return given
        while self._next in self._given:
            self._next += 1
        self._given.add(self._next)
        return self._next


_LEFT_OUT = (
    "annotation-entry", "annotation-image", "annotation-category", "box-invalid", "iscrowd-invalid",
    "box-empty", "box-outside",
)  # fmt: skip


def _changed(work: _Work, index: int, entry: dict[str, Any], annotation: Annotation) -> dict[str, Any]:
    """Return the entry with the values of `annotation`, where they differ."""
    values = {
        "id": annotation.id,
        "bbox": list(annotation.bbox),
        "area": annotation.area,
        "iscrowd": int(annotation.is_crowd),
    }
    new = {key: value for key, value in values.items() if key not in entry or entry[key] != value}
    if new:
        what = (f"{key} {printable(entry.get(key, 'missing'))} -> {value}" for key, value in new.items())
        work.change("annotations", index, entry, ", ".join(what))
    return {**entry, **new}


def _kinds_by_place(scan: Scan, kinds: Iterable[str]) -> dict[str, str]:
    return {
        example.text: finding.kind
        for finding in scan.findings.found
        if finding.kind in kinds
        for example in finding.examples
    }


def _get(entry: Any, key: str, expected: type) -> Any:
    """Return the usable value of a key of something that may be no object, or None."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if is_a(value, expected) else None
