"""Every kind of thing that can be odd about a data set, and what is done about it: the policy in one table."""

from dataclasses import dataclass
from enum import StrEnum


class Policy(StrEnum):
    """What training does about a finding.

    REFUSE: it does not start. REPAIR: the data are put right while they are read, counted and said. WARN: they are used
    as they are, counted and said. ACCEPT: they are used rightly as they are; only `sparsedet data check` lists them.
    """

    REFUSE = "refuse"
    REPAIR = "repair"
    WARN = "warn"
    ACCEPT = "accept"


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        policy: what training does about it.
        what: the finding in words, after "3 x".
        fix: what the copy that ``data check --fix`` writes has instead; empty where it stays as it is.
    """

    policy: Policy
    what: str
    fix: str = ""


_REMOVED = "annotation removed"
_IMAGE_REMOVED = "image and its annotations removed"
_AS_READ = "as training reads it"

KINDS: dict[str, Kind] = {
    # the file
    "file": Kind(Policy.REFUSE, "file cannot be read, is no JSON or not in COCO's format"),
    # images
    "image-entry": Kind(
        Policy.REFUSE,
        "image without a usable id, file_name, width or height",
        f"width and height taken from the image file, else {_IMAGE_REMOVED}",
    ),
    "image-id-repeated": Kind(
        Policy.REFUSE, "image has the id of another image", "removed where both name the same file, else as it is"
    ),
    "image-name-unsafe": Kind(
        Policy.REFUSE,
        "file name leads out of the folder of the images",
        f"made relative where the file is in the folder after all, else {_IMAGE_REMOVED}",
    ),
    "image-too-large": Kind(Policy.REFUSE, "image has more pixels than are decoded", _IMAGE_REMOVED),
    "image-missing": Kind(
        Policy.REFUSE,
        "image file is missing",
        f"named as on the disk where only case, slashes or Unicode form differ, else {_IMAGE_REMOVED}",
    ),
    "image-damaged": Kind(Policy.REFUSE, "image file is damaged, no image, or of more than 16 bits", _IMAGE_REMOVED),
    "image-size-wrong": Kind(Policy.REFUSE, "image file has another size than recorded"),
    "image-file-shared": Kind(Policy.WARN, "image names the same file as another image"),
    "image-rotated": Kind(
        Policy.WARN, "image carries an EXIF orientation; it is applied where the recorded size allows it"
    ),
    "image-grayscale": Kind(Policy.ACCEPT, "image is grayscale; its value goes to all three channels"),
    "image-cmyk": Kind(Policy.ACCEPT, "image is CMYK; it is converted to RGB"),
    "image-16-bit": Kind(Policy.ACCEPT, "image has 16 bits a pixel; the upper 8 are used"),
    "image-palette": Kind(Policy.ACCEPT, "image has a palette; it is converted to RGB"),
    "image-alpha": Kind(Policy.ACCEPT, "image has transparency; it is dropped"),
    "image-name-unicode": Kind(Policy.ACCEPT, "file name is not ASCII"),
    "image-empty": Kind(Policy.ACCEPT, "image has no annotation; it is background"),
    "image-in-both-splits": Kind(
        Policy.WARN, "image is also in the training split, so the evaluation is too good"
    ),
    "image-nearly-in-both-splits": Kind(
        Policy.WARN, "image looks like one of the training split, so the evaluation may be too good"
    ),
    # ids
    "ids-unsorted": Kind(Policy.ACCEPT, "list is not in the order of its ids; images and categories are sorted"),
    "id-zero": Kind(Policy.ACCEPT, "image or category id is 0"),
    "annotation-id-below-1": Kind(
        Policy.REPAIR,
        "annotation id was below 1, which evaluators lose, so all annotations were numbered from 1",
        "given an unused id",
    ),
    "annotation-id-repeated": Kind(
        Policy.REPAIR,
        "annotation id came a second time, on which evaluators disagree, so all annotations were numbered from 1",
        "given an unused id",
    ),
    # categories
    "category-entry": Kind(Policy.REFUSE, "category without a usable id or name"),
    "category-id-repeated": Kind(
        Policy.REFUSE, "category has the id of another category", "removed where both have the same name, else as it is"
    ),
    "category-name-shared": Kind(Policy.WARN, "category has the same name as another category"),
    "category-id-gaps": Kind(Policy.ACCEPT, "category ids have gaps; labels are the places in the order of the ids"),
    "category-unused": Kind(Policy.WARN, "category has no box to learn from"),
    "categories-differ": Kind(Policy.REFUSE, "categories differ from those of the training split in id or name"),
    # annotations
    "annotation-entry": Kind(Policy.REFUSE, "annotation without a usable id, image_id, category_id or bbox", _REMOVED),
    "annotation-image": Kind(Policy.REFUSE, "annotation of an image that is not in the file", _REMOVED),
    "annotation-category": Kind(Policy.REFUSE, "annotation of a category that is not in the file", _REMOVED),
    "box-invalid": Kind(
        Policy.REFUSE, "box is not 4 finite numbers with width and height not below 0", _REMOVED
    ),
    "iscrowd-invalid": Kind(Policy.REFUSE, "'iscrowd' is neither 0 nor 1", _REMOVED),
    "boxes-corners": Kind(
        Policy.REFUSE, "all boxes are corners [x1, y1, x2, y2]", "boxes turned into [x, y, width, height]"
    ),
    "boxes-relative": Kind(Policy.REFUSE, "all boxes are shares of the image size, not pixels"),
    "boxes-mostly-outside": Kind(
        Policy.WARN,
        "most boxes reach outside their image; are they corners [x1, y1, x2, y2] instead of [x, y, width, height]?",
        _AS_READ,
    ),
    "box-empty": Kind(Policy.REPAIR, "box has no width or no height and was left out", _AS_READ),
    "box-outside": Kind(
        Policy.REPAIR, "box lies outside its image (less than a pixel inside) and was left out", _AS_READ
    ),
    "box-clipped": Kind(Policy.REPAIR, "box reached outside its image and was clipped", _AS_READ),
    "box-repeated": Kind(
        Policy.WARN, "box is there twice, with the same image and category", "the second annotation removed"
    ),
    "area-missing": Kind(
        Policy.REPAIR, "'area' was missing or no positive number and was set to width * height", _AS_READ
    ),
    "iscrowd-missing": Kind(Policy.REPAIR, "'iscrowd' was missing and was set to 0", _AS_READ),
    "crowd": Kind(Policy.ACCEPT, "annotation is a crowd: a region in which detections are neither right nor wrong"),
}  # fmt: skip
