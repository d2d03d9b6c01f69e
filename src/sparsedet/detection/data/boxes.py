"""Boxes of an annotation file: clipped to their image, and together judged by whether they are boxes at all."""

from dataclasses import dataclass

from sparsedet.detection.data.findings import BBox, Findings

ROUNDING_PX = 0.01  # a box may exceed its image by this without being counted: files hold rounded numbers
MIN_INSIDE_PX = 1.0  # a clipped box with less than this in it, in width or height, counts as wholly outside
MIN_BOXES = 10  # from so many boxes on, all being corners or all being shares is no accident


def clip_bbox(bbox: BBox, image_width: int, image_height: int) -> tuple[BBox, float]:
    """Return the part of `bbox` inside the image, and by how many pixels the side that moved most has moved."""
    x, y, width, height = bbox
    left, right = (min(max(edge, 0.0), float(image_width)) for edge in (x, x + width))
    top, bottom = (min(max(edge, 0.0), float(image_height)) for edge in (y, y + height))
    moved_px = max(abs(left - x), abs(right - (x + width)), abs(top - y), abs(bottom - (y + height)))
    if moved_px == 0:
        return bbox, 0.0
    return (left, top, right - left, bottom - top), moved_px


def inside(
    bbox: BBox, image_width: int, image_height: int, where: str, image_id: int, findings: Findings
) -> tuple[BBox, bool] | None:
    """Return the part of a box inside its image and whether it was clipped, or None if nothing of it is; counted."""
    if 0 in bbox[2:]:  # COCO's train2017 has two such boxes
        findings.count("box-empty", where, image_id, bbox)
        return None
    clipped, moved_px = clip_bbox(bbox, image_width, image_height)
    was_clipped = moved_px > ROUNDING_PX
    smaller_side = min(clipped[2:])
    if smaller_side <= 0 or (was_clipped and smaller_side < MIN_INSIDE_PX):
        findings.count("box-outside", where, image_id, bbox)
        return None
    if was_clipped:
        findings.count("box-clipped", where, image_id, bbox)
    return clipped, was_clipped


@dataclass
class BoxSurvey:
    """What all boxes of a file have in common.

    Attributes:
        num_boxes: all that are four numbers with a width and height not below 0.
        num_as_corners: those that would be a box inside their image if they were [x1, y1, x2, y2].
        num_relative: those within [0, 1].
        first: place, image id and numbers of the first box.
    """

    num_boxes: int = 0
    num_as_corners: int = 0
    num_relative: int = 0
    first: tuple[str, int, BBox] | None = None

    def add(self, bbox: BBox, image_width: int, image_height: int, where: str, image_id: int) -> None:
        """Take one box into account."""
        x, y, x2, y2 = bbox
        self.num_boxes += 1
        self.num_as_corners += 0 <= x < x2 <= image_width + ROUNDING_PX and 0 <= y < y2 <= image_height + ROUNDING_PX
        self.num_relative += min(bbox) >= 0 and max(bbox) <= 1
        self.first = self.first or (where, image_id, bbox)

    def judge(self, findings: Findings) -> None:
        """Note boxes that are all in another form, or most of which reach outside their image."""
        if self.first is None:
            return
        where, image_id, bbox = self.first
        num_outside = findings.num_counted("box-clipped") + findings.num_counted("box-outside")
        all_boxes = f"{self.num_boxes} boxes"
        if self.num_boxes >= MIN_BOXES and self.num_relative == self.num_boxes:
            findings.fault(
                "boxes-relative",
                "'annotations'",
                "boxes [x, y, width, height] in pixels",
                f"{all_boxes} within [0, 1], as {where} {list(bbox)}",
                "Multiply them by width and height of the image.",
                image_id,
                bbox,
            )
        elif num_outside <= self.num_boxes / 2:
            return
        elif self.num_boxes >= MIN_BOXES and self.num_as_corners == self.num_boxes:
            findings.fault(
                "boxes-corners",
                "'annotations'",
                "boxes [x, y, width, height]",
                f"{all_boxes} of which {num_outside} reach outside their image and all are corners [x1, y1, x2, y2], "
                f"as {where} {list(bbox)}",
                "Write width and height; `sparsedet data check FILE --fix COPY` does.",
                image_id,
                bbox,
            )
        else:
            findings.count("boxes-mostly-outside", f"{num_outside} of {all_boxes}", image_id, bbox)
