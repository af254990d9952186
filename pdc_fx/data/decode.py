"""Encoded images to pixels: grey or colour, brought to a size, with the image named where it cannot be read."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from pdc_fx.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

CROP_RATIO = 0.875  # ImageNet evaluation: the shorter side to 256, the central 224 x 224
SHAPE_HINT = "give the shape to bring all images to, as --input 1x3x224x224 or input_shape=(3, 224, 224)"


def decode(data: bytes) -> Image:
    """Decode an image file's content; may raise what Pillow raises."""
    from PIL import Image

    # Pillow tries seven formats before WebP, which costs as much as decoding a small image; the first bytes tell.
    formats = {b"RIFF": ("WEBP",), b"\x89PNG": ("PNG",), b"\xff\xd8\xff\xe0": ("JPEG",)}.get(data[:4])
    image = Image.open(io.BytesIO(data), formats=formats)
    image.load()
    return image


def guarded(read: Callable[[int], Image], row: int, name: str) -> Image:
    """Read image ``row``; what Pillow raises becomes an :class:`InputError` that calls the image ``name``."""
    from PIL import Image, UnidentifiedImageError

    try:
        return read(row)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "it is none that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError("an image cannot be read", where=name, hint=f"replace or remove it ({reason})") from error


def channels_of(image: Image, name: str) -> int:
    """1 for a grey image, 3 for colour."""
    if image.mode in ("1", "L", "LA", "La"):
        return 1
    if image.mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"):
        return 3
    raise InputError(
        f"an image of mode {image.mode!r} has more than 8 bits a channel",
        where=name,
        hint="convert the images to 8 bits",
    )


def as_channels(image: Image, channels: int, name: str, *, convert: bool) -> Image:
    """Grey to colour is always right; colour to grey only where one channel was asked for."""
    if channels_of(image, name) > channels and not convert:
        raise InputError(
            "a colour image among grey ones (the first image is grey)",
            where=name,
            hint=SHAPE_HINT,
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def resize_and_crop(image: Image, height: int, width: int) -> Image:
    """Return the centre of ``image`` as in ImageNet evaluation (224: the shorter side to 256, then the central crop).

    Bilinear with antialiasing; for a square target it is torchvision's ``Resize`` and ``CenterCrop``.
    """
    from PIL import Image

    covers = max(round(height / CROP_RATIO) / image.height, round(width / CROP_RATIO) / image.width)
    resized = (max(width, int(covers * image.width + 1e-6)), max(height, int(covers * image.height + 1e-6)))
    left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    return image.resize(resized, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
