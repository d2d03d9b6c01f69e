"""Image files to RGB tensors.

Pillow decodes everything: it reads all common formats, refuses truncated files, and gives the same pixels as
torchvision's decoders, which are deprecated since torchvision 0.29. Only formats of pixels are read: Pillow would hand
EPS to Ghostscript, a program that runs what the file says.
"""

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sparsedet.common.errors import DatasetError

MAX_PIXELS = 89_478_485  # from where on Pillow warns of a decompression bomb; 256 MB as RGB
MAX_BYTES = 2**30  # no more than such an image takes without compression
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_ORIENTATION = 0x0112  # EXIF tag; 1 = upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_KINDS_OF_MODES = {
    "1": "image-grayscale",
    "L": "image-grayscale",
    "LA": "image-grayscale",
    "La": "image-grayscale",
    "CMYK": "image-cmyk",
    "I": "image-16-bit",
    "I;16": "image-16-bit",
    "I;16B": "image-16-bit",
    "I;16L": "image-16-bit",
    "P": "image-palette",
    "PA": "image-palette",
    "RGBA": "image-alpha",
    "RGBa": "image-alpha",
}


class ImageError(DatasetError):
    """An image file cannot be used.

    Attributes:
        kind: key of `sparsedet.detection.data.kinds.KINDS`.
        message: what users see.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)  # both, so that it can be sent from a worker process
        self.kind: str = self.args[0]
        self.message: str = self.args[1]

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file says.

    Attributes:
        width: of the stored image, in pixels.
        height: likewise.
        orientation: of EXIF, 1 (upright) to 8.
        kind: key of `sparsedet.detection.data.kinds.KINDS` for the way its pixels are stored; None for RGB.
    """

    width: int
    height: int
    orientation: int
    kind: str | None

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) after the orientation is applied."""
        turned = self.orientation in (5, 6, 7, 8)
        return (self.width, self.height) if turned else (self.height, self.width)


def read_header(path: Path) -> ImageHeader:
    """Read the header of an image file.

    Raises:
        ImageError: the file is missing or no image, or has more than `MAX_PIXELS`.
    """
    with _opened(path) as image:
        return _header(image)


def decode_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Decode an image file to RGB.

    Grayscale, palette and CMYK images become RGB, transparency is dropped, 16-bit values keep their upper
    8 bits; values of more bits are refused, because what is black and white in them is not known. An EXIF orientation
    is applied, unless only the stored (unrotated) image has the recorded `size`: boxes were then drawn on the unrotated
    image.

    Args:
        path: the file.
        size: (height, width) that the annotation file records, in pixels; None accepts any.

    Returns:
        uint8 tensor of shape (3, H, W), the colours of a pixel side by side in memory (channels last), as files have
        them and resizing is fastest.

    Raises:
        ImageError: the file is missing, damaged or no image, has more than `MAX_PIXELS` (it is then not decoded), or
            has another size than `size`.
    """
    with _opened(path) as image:
        image.load()
        header = _header(image)
        is_turned = size is None or header.upright_size == size or (header.height, header.width) != size
        method = _UPRIGHT.get(header.orientation) if is_turned else None
        pixels = _rgb(path, image if method is None else image.transpose(method))
    if size is not None and pixels.shape[:2] != size:
        height, width = pixels.shape[:2]
        raise ImageError(
            "image-size-wrong",
            f"{path}: expected {size[1]}x{size[0]} pixels (width x height) as the annotation file records, "
            f"got {width}x{height}. Correct 'width' and 'height', or restore the image that was annotated.",
        )
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _header(image: Image.Image) -> ImageHeader:
    try:
        exif = Image.Image.getexif(image)  # that of PNG files would decode the image first
        orientation = exif.get(_ORIENTATION)
    except Exception:  # damaged metadata, of which Pillow makes many errors, do not damage the pixels
        orientation = None
    turn = orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1
    turn = 1 if image.format == "TIFF" else turn  # Pillow turns these itself
    return ImageHeader(image.width, image.height, turn, _KINDS_OF_MODES.get(image.mode))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image of which only the header is read; what goes wrong before the block ends is an ImageError."""
    content = _read(path)
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, f"{image.width}x{image.height}")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "more than twice as many") from error
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders also raise SyntaxError, EOFError, struct.error, MemoryError …
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(
            "image-damaged",
            f"{path}: expected a whole image file, got a damaged one ({reason}, {len(content)} bytes). "
            "Restore the file, or remove the image from the annotation file.",
        ) from error


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _too_large(path: Path, size: str) -> ImageError:
    return ImageError(
        "image-too-large",
        f"{path}: expected an image of at most {MAX_PIXELS} pixels, got {size}. It was not decoded: "
        "cut it into tiles, or remove it from the annotation file.",
    )


def _odd_values(path: Path, got: str) -> ImageError:
    return ImageError(
        "image-damaged",
        f"{path}: expected values of 8 or 16 bits, got {got}, of which black and white are not known. "
        "Convert the file to 8 bits.",
    )


def _read(path: Path) -> bytes:
    remedy = "Check the file name and the folder of the images."
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe or device may never end
            raise ImageError("image-damaged", f"{path}: expected an image file, got no ordinary file. {remedy}")
        if about.st_size > MAX_BYTES:
            message = f"{path}: expected an image file of at most {MAX_BYTES} bytes, got {about.st_size}. {remedy}"
            raise ImageError("image-too-large", message)
        return path.read_bytes()
    except OSError as error:
        message = f"{path}: expected an image file, got '{error.strerror}'. {remedy}"
        raise ImageError("image-missing", message) from error


def _rgb(path: Path, image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return uint8 pixels of shape (H, W, 3)."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # Pillow would clip these at 255 instead of scaling
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() >= 2**16:
            raise _odd_values(path, f"values from {values.min()} to {values.max()}")
        return np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise _odd_values(path, "values with fractions")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
