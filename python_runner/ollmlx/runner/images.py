"""Image files from clients: untrusted, so checked before they are decoded, and decoded within bounds."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence

from PIL import Image, ImageOps

from ollmlx.runner.errors import invalid
from ollmlx.runner.v1 import runner_pb2 as pb

FORMATS = ("PNG", "JPEG", "WEBP")
# Pixels of one image, and of all images of a request: 4 bytes each when decoded.
MAX_PIXELS = 64 * 1024 * 1024
MAX_TOTAL_PIXELS = 4 * MAX_PIXELS
# Images of a request. A processor may make a large picture of a small one.
MAX_IMAGES = 64


def digest(image: pb.Image) -> str:
    return hashlib.sha256(image.data).hexdigest()


def decode(images: Sequence[pb.Image]) -> list[Image.Image]:
    """The pictures as RGB; raises INVALID_ARGUMENT for what is no whole image of a known format and a bearable size."""
    if len(images) > MAX_IMAGES:
        raise invalid(f"the request has {len(images)} images; at most {MAX_IMAGES} are allowed")
    opened = [_open(image, i, len(images)) for i, image in enumerate(images, 1)]
    if sum(_pixels(picture) for picture in opened) > MAX_TOTAL_PIXELS:
        raise invalid(
            f"the images have more than {MAX_TOTAL_PIXELS} pixels together; send fewer or smaller ones"
        )
    return [_to_rgb(picture, i, len(images)) for i, picture in enumerate(opened, 1)]


def _open(image: pb.Image, number: int, count: int) -> Image.Image:
    """Reads the header only."""
    try:
        with warnings.catch_warnings():
            # Pillow's own bound is another one; ours follows.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(image.data), formats=FORMATS)
    except Image.DecompressionBombError as err:
        raise _too_large(number, count) from err
    except Exception as err:
        raise invalid(f"{_name(number, count)} is not a readable PNG, JPEG or WebP file") from err
    if _pixels(picture) > MAX_PIXELS:
        raise _too_large(number, count, picture.size)
    return picture


def _to_rgb(picture: Image.Image, number: int, count: int) -> Image.Image:
    """Decodes the first frame, turned as its EXIF data asks, on white where it is transparent."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.load()
            turned = ImageOps.exif_transpose(picture)
            if turned.has_transparency_data:
                turned = turned.convert("RGBA")
                white = Image.new("RGBA", turned.size, "white")
                turned = Image.alpha_composite(white, turned)
            return turned.convert("RGB")
    except Exception as err:
        raise invalid(f"{_name(number, count)} is damaged or incomplete: {err}") from err


def _pixels(picture: Image.Image) -> int:
    return picture.width * picture.height


def _too_large(number: int, count: int, size: tuple[int, int] | None = None) -> Exception:
    has = f"has {size[0]} x {size[1]} pixels" if size else "has too many pixels"
    return invalid(f"{_name(number, count)} {has}; at most {MAX_PIXELS} are allowed")


def _name(number: int, count: int) -> str:
    return "the image" if count == 1 else f"image {number} of {count}"
