"""Cameras by name, however datasets spell them."""

import re
from collections.abc import Sequence

HEAD_CAMERA = "observation.image.head_camera"
_PREFIX = re.compile(r"observation\.(images?\.)?")


def camera_name(feature: str) -> str:
    """What an environment calls the camera of a dataset's feature.

    >>> [camera_name(key) for key in ("observation.image.wrist", "observation.images.wrist", "wrist")]
    ['wrist', 'wrist', 'wrist']
    """
    return _PREFIX.sub("", feature, count=1) if _PREFIX.match(feature) else feature


def find_camera(cameras: Sequence[str], wanted: str) -> str | None:
    """The feature among `cameras` that is `wanted`, or else the only one of the same name."""
    same = [camera for camera in cameras if camera_name(camera) == camera_name(wanted)]
    return wanted if wanted in cameras else same[0] if len(same) == 1 else None
