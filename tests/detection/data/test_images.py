import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.images import MAX_PIXELS, ImageError, decode_image, read_header

HEIGHT, WIDTH = 6, 8
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GRAY = RGB[:, :, 0]


def tensor(pixels):
    """Return (H, W, 3) pixels as the tensor that `decode_image` should give."""
    return torch.from_numpy(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).transpose(2, 0, 1)))


def palette(pixels):
    """Return pixels of at most 256 colours as a palette image."""
    colours, index = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(index.reshape(HEIGHT, WIDTH).astype(np.uint8), "P")
    image.putpalette(colours.flatten().tolist())
    return image


def save(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_colour_without_loss(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    image = decode_image(save(Image.fromarray(RGB), tmp_path / f"a.{suffix}", **options))
    assert image.dtype == torch.uint8
    assert image.permute(1, 2, 0).is_contiguous()
    assert torch.equal(image, tensor(RGB))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GRAY), GRAY[:, :, None]),
        (Image.fromarray(GRAY > 99), np.where(GRAY > 99, 255, 0).astype(np.uint8)[:, :, None]),
        (Image.fromarray(np.dstack([GRAY, RGB[:, :, 1]])), GRAY[:, :, None]),
        (Image.fromarray(np.dstack([RGB, GRAY])), RGB),
        (palette(RGB), RGB),
        (Image.fromarray(GRAY.astype(np.uint16) * 256 + 77), GRAY[:, :, None]),
        (Image.fromarray(GRAY.astype(np.int32) * 256 + 77), GRAY[:, :, None]),
    ],
    ids=["gray", "black and white", "gray with alpha", "colour with alpha", "palette", "16 bits", "32 bits"],
)
def test_other_modes_become_rgb(tmp_path, image, expected):
    path = tmp_path / ("a.tif" if image.mode == "I" else "a.png")
    assert torch.equal(decode_image(save(image, path)), tensor(expected))


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (GRAY.astype(np.float32) / 255, "values with fractions"),
        (GRAY.astype(np.int32) * 1000, f"values from {int(GRAY.min()) * 1000} to {int(GRAY.max()) * 1000}"),
        (GRAY.astype(np.int32) - 300, f"values from {int(GRAY.min()) - 300} to {int(GRAY.max()) - 300}"),
    ],
    ids=["float", "above 16 bits", "below 0"],
)
def test_values_of_which_black_and_white_are_not_known_are_refused(tmp_path, values, got):
    path = save(Image.fromarray(values), tmp_path / "a.tif")
    with pytest.raises(ImageError) as caught:
        decode_image(path)
    assert caught.value.kind == "image-damaged"
    assert str(caught.value) == (
        f"{path}: expected values of 8 or 16 bits, got {got}, of which black and white are not known. "
        "Convert the file to 8 bits."
    )


def test_a_palette_with_transparency_decodes_without_a_warning(tmp_path):
    path = save(palette(RGB), tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    assert torch.equal(decode_image(path), tensor(RGB))


def test_cmyk(tmp_path):
    solid = np.zeros((HEIGHT, WIDTH, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    path = save(Image.fromarray(solid).convert("CMYK"), tmp_path / "a.jpg", quality=100)
    assert (decode_image(path).int() - tensor(solid).int()).abs().max() <= 3


def test_unicode_path(tmp_path):
    assert decode_image(save(Image.fromarray(RGB), tmp_path / "图像 é.png")).shape == (3, HEIGHT, WIDTH)


# --- EXIF orientation: 6 means that the stored image must be turned clockwise ----------------------------


def turned(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(Image.fromarray(RGB), tmp_path / "a.png", exif=exif)


@pytest.mark.parametrize(
    ("orientation", "size", "expected"),
    [
        (6, (WIDTH, HEIGHT), np.rot90(RGB, -1)),
        (6, (HEIGHT, WIDTH), RGB),
        (6, None, np.rot90(RGB, -1)),
        (3, (HEIGHT, WIDTH), np.rot90(RGB, 2)),
        (1, (HEIGHT, WIDTH), RGB),
    ],
    ids=["boxes on the turned image", "boxes on the stored image", "no size", "upside down", "upright"],
)
def test_orientation_follows_the_recorded_size(tmp_path, orientation, size, expected):
    path = turned(tmp_path, orientation)
    assert torch.equal(decode_image(path, size), tensor(expected))
    assert read_header(path).orientation == orientation


def test_no_exif_means_upright(tmp_path):
    assert read_header(save(Image.fromarray(RGB), tmp_path / "a.png")).orientation == 1


# --- faults ----------------------------------------------------------------------------------------------


def fault(path, size=None):
    with pytest.raises(DatasetError) as raised:
        decode_image(path, size)
    return str(raised.value)


def test_missing_file(tmp_path):
    assert fault(tmp_path / "a.png") == (
        f"{tmp_path / 'a.png'}: expected an image file, got 'No such file or directory'. "
        "Check the file name and the folder of the images."
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
def test_truncated_file(tmp_path, suffix):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"a.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    message = fault(path)
    assert message.startswith(f"{path}: expected a whole image file, got a damaged one (")
    assert message.endswith(
        f", {len(content) // 2} bytes). Restore the file, or remove the image from the annotation file."
    )


def test_a_jpeg_that_lacks_its_last_bytes(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-6])
    assert "image file is truncated" in fault(path)


@pytest.mark.parametrize("place", [60, 2 * 64 * 1024], ids=["near the start", "in the middle"])
def test_a_png_with_a_flipped_bit(tmp_path, place):
    path = save(Image.fromarray(np.resize(RGB, (256, 256, 3))), tmp_path / "a.png", compress_level=0)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert "got a damaged one (" in fault(path)


def test_a_png_with_a_chunk_of_no_known_name(tmp_path):
    path = save(Image.fromarray(np.resize(RGB, (256, 256, 3))), tmp_path / "a.png", compress_level=0)
    content = path.read_bytes()
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    path.write_bytes(content[:second] + b"\0\0\0\0" + content[second + 4 :])
    assert "got a damaged one (" in fault(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8", b"<html>404</html>" * 99])
def test_no_image(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert fault(path) == (
        f"{path}: expected a whole image file, got a damaged one (no known image format, "
        f"{len(content)} bytes). Restore the file, or remove the image from the annotation file."
    )


def test_another_size_than_recorded(tmp_path):
    path = save(Image.fromarray(RGB), tmp_path / "a.png")
    assert fault(path, (HEIGHT, WIDTH + 1)) == (
        f"{path}: expected 9x6 pixels (width x height) as the annotation file records, got 8x6. "
        "Correct 'width' and 'height', or restore the image that was annotated."
    )


# --- what is refused before it is decoded ----------------------------------------------------------------


def png_that_claims(width, height):
    """A PNG whose header claims a size; there are no pixels behind it."""

    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    pixels = chunk(b"IDAT", zlib.compress(bytes(99)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(9460, 9460), (60_000, 60_000), (1, 2**31 - 1), (MAX_PIXELS + 1, 1)])
def test_a_gigantic_image_is_refused_from_its_header(tmp_path, size, recwarn):
    path = tmp_path / "a.png"
    path.write_bytes(png_that_claims(*size))
    for function in (decode_image, read_header):
        with pytest.raises(ImageError) as raised:
            function(path)
        assert raised.value.kind == "image-too-large"
        assert str(raised.value).startswith(f"{path}: expected an image of at most {MAX_PIXELS} pixels, got ")
        assert "It was not decoded: cut it into tiles" in str(raised.value)


def test_a_warning_of_a_bomb_that_is_an_error_is_ours_too(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_that_claims(10_000, 10_000))
    assert "expected an image of at most" in fault(path)


def test_a_claim_just_below_the_limit_is_looked_at(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_that_claims(9459, 9459))
    assert read_header(path).upright_size == (9459, 9459)
    assert "got a damaged one (image file is truncated" in fault(path)
    path.write_bytes(png_that_claims(MAX_PIXELS, 1))
    assert "got a damaged one (" in fault(path)  # Pillow has no memory for such a line


def test_a_png_with_a_compressed_text_of_gigabytes(tmp_path):
    path = tmp_path / "a.png"
    text = b"Comment\0\0" + zlib.compress(bytes(2**27), 9)
    content = png_that_claims(8, 4)
    chunk = len(text).to_bytes(4) + b"zTXt" + text + zlib.crc32(b"zTXt" + text).to_bytes(4)
    path.write_bytes(content[:33] + chunk + content[33:])
    assert "got a damaged one (Decompressed data too large" in fault(path)


def test_formats_that_are_programs_are_not_opened(tmp_path):
    path = tmp_path / "a.eps"
    Image.fromarray(RGB).save(path)
    assert "no known image format" in fault(path)
    path.rename(tmp_path / "a.jpg")
    assert "no known image format" in fault(tmp_path / "a.jpg")


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    with path.open("wb") as stream:
        stream.truncate(2**30 + 1)  # takes no room on the disk
    assert f"expected an image file of at most {2**30} bytes, got {2**30 + 1}." in fault(path)


def test_a_folder_or_pipe_is_no_image(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert "got no ordinary file" in fault(tmp_path / "a.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "b.png")
        assert "got no ordinary file" in fault(tmp_path / "b.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(RGB), tmp_path / f"a.{suffix}", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert torch.equal(decode_image(path), tensor(expected))
    assert read_header(path).upright_size == expected.shape[:2]


def test_damaged_metadata_do_not_damage_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    path = save(Image.fromarray(RGB), tmp_path / "a.jpg", exif=exif)
    content = path.read_bytes()
    content = content.replace(b"\x01\x0e\x00\x02", b"\x01\x01\x00\x02")  # the text is now the height of the image
    path.write_bytes(content)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB").transpose(Image.Transpose.ROTATE_270))
        with pytest.raises(struct.error):
            ImageOps.exif_transpose(image)
    assert torch.equal(decode_image(path), tensor(expected))
