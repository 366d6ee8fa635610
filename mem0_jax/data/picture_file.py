"""Picture files from anybody: how they are opened, and what of them becomes RGB."""

import re
import struct
import warnings

import numpy as np
from PIL import ExifTags, Image

from mem0_jax.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # of 8 bits a channel
# What cannot be read: Pillow's own bound is far beyond those that every reader here has, and is an error of its own.
DAMAGE = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)
_STARTS = {"PNG": rb"\x89PNG\r\n\x1a\n", "JPEG": rb"\xff\xd8\xff", "WebP": b"RIFF....WEBP", "BMP": b"BM.{12}"}
_TURN = Image.Transpose
_TURNS = {2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE}
_TURNS |= {6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90}
# Pillow warns at half of its bound, of every size anew.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class PictureModeError(UserError):
    """A picture of more than 8 bits a channel, which Pillow would clip."""


def form_of(data: bytes) -> str | None:
    """The format of a file by its first bytes, however damaged the rest may be; None: none of `FORMATS`."""
    return next((name for name, start in _STARTS.items() if re.match(start, data, re.DOTALL)), None)


def turned(image: Image.Image) -> Image.Image:
    """An opened picture as its EXIF says it was held.

    Pillow's own `exif_transpose` writes the rest of the EXIF anew, which fails in many ways where that is damaged.
    """
    image.load()  # which turns a TIFF, and nothing else
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def rgb(image: Image.Image) -> np.ndarray:
    """An opened picture as uint8 [height, width, 3]; of an animation the first picture counts, as in LeRobot.

    Grey, palette and CMYK become RGB as by Pillow, and transparency is dropped.

    Raises:
        PictureModeError: more than 8 bits of grey. One of `DAMAGE`: it cannot be read.
    """
    if image.mode not in MODES:
        depths = ", as depth maps have" if image.mode[0] in "IF" else ""
        raise PictureModeError(f"has the mode {image.mode}{depths}; expected 8 bits a channel, grey or colours")
    image.info.pop("transparency", None)  # Pillow warns of what it drops
    return np.asarray(image.convert("RGB"))
