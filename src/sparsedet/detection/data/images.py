"""Image files to RGB tensors.

Pillow decodes everything: it reads all common formats, refuses truncated files, and gives the same pixels as
torchvision's decoders, which are deprecated since torchvision 0.29.
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sparsedet.common.errors import DatasetError

_ORIENTATION = 0x0112  # EXIF tag; 1 = upright


def decode_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Decode an image file to RGB.

    Grayscale, palette and CMYK images become RGB, transparency is dropped, 16-bit values keep their upper
    8 bits. An EXIF orientation is applied, unless only the stored (unrotated) image has the recorded `size`:
    boxes were then drawn on the unrotated image.

    Args:
        path: the file.
        size: (height, width) that the annotation file records, in pixels; None accepts any.

    Returns:
        uint8 tensor of shape (3, H, W).

    Raises:
        DatasetError: the file is missing, damaged or no image, or has another size than `size`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path}: expected an image file, got '{error.strerror}'. Check the file name and the folder of the images."
        ) from error
    try:
        with Image.open(io.BytesIO(content)) as image:
            stored = image.size
            upright = ImageOps.exif_transpose(image)
            if size is not None and upright.size != size[::-1] and stored == size[::-1]:
                upright = image
            pixels = _rgb(upright)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise DatasetError(
            f"{path}: expected a whole image file, got a damaged one ({reason}, {len(content)} bytes). "
            "Restore the file, or remove the image from the annotation file."
        ) from error
    if size is not None and pixels.shape[:2] != size:
        height, width = pixels.shape[:2]
        raise DatasetError(
            f"{path}: expected {size[1]}x{size[0]} pixels (width x height) as the annotation file records, "
            f"got {width}x{height}. Correct 'width' and 'height', or restore the image that was annotated."
        )
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def exif_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image file, 1 (upright) to 8, reading its header only."""
    with Image.open(path) as image:
        return int(image.getexif().get(_ORIENTATION, 1))


def _rgb(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return uint8 pixels of shape (H, W, 3)."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # Pillow would clip these at 255 instead of scaling
        gray = (np.asarray(image).astype(np.int64).clip(0, 2**16 - 1) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
