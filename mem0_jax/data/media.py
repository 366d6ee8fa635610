"""What kind of pictures or video a file holds, by how it begins, and how to turn it into one that is read."""

import re
import shlex

# Of formats that begin alike the one told by more comes first. ISO files: size, "ftyp", brand.
_KINDS = {
    rb"\x89PNG\r\n": "a PNG",
    rb"\xff\xd8\xff": "a JPEG",
    rb"GIF8[79]a": "a GIF",
    rb"II\*\0|MM\0\*|II\+\0|MM\0\+": "a TIFF",
    rb"RIFF....WEBP": "a WEBP",
    rb"RIFF....AVI ": "an AVI video",
    rb"BM....\0\0\0\0": "a BMP",
    rb"P[1-6y][\s#]|P[Ff]\n": "a PPM",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "a JPEG 2000",
    rb"\0\0\0\x0cJXL |\xff\x0a": "a JPEG XL",
    rb"....ftypavi[fs]": "an AVIF",
    rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)": "a HEIC or HEIF",
    rb"....(?:ftyp|moov|mdat|wide|free|skip)": "an MP4 or MOV video",
    rb"\x1a\x45\xdf\xa3": "a Matroska or WebM video",
    rb"\x47.{187}\x47|.{4}\x47.{191}\x47": "an MPEG-TS video",
    rb"\0\0\x01[\xba\xb3]": "an MPEG video",
    rb"FLV\x01": "an FLV video",
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "an ASF or WMV video",
    rb"OggS": "an Ogg video",
    rb"YUV4MPEG2 ": "a Y4M video",
    rb"DKIF": "an IVF video",
    rb"\0\0\0?\x01[\x09\x27\x40\x42\x67]": "raw H.264 or HEVC without a container",
    rb"qoif": "a QOI",
    rb"v/1\x01": "an OpenEXR picture",
    rb"#\?RADIANCE": "a Radiance HDR",
    rb"DDS ": "a DDS",
    rb"\0\0\x01\0[^\0]": "an ICO",
    rb"\x01\xda[\0\x01][\x01\x02]": "an SGI picture",
    rb"\x0a[\0\x02-\x05][\0\x01][\x01\x02\x04\x08]": "a PCX",
}
_PATTERNS = {re.compile(pattern, re.DOTALL): kind for pattern, kind in _KINDS.items()}


def media_kind(head: bytes) -> str:
    """What a file is, with an article, by its first kilobyte; "" for all that is not known.

    >>> media_kind(b"GIF89a...")
    'a GIF'
    """
    return next((kind for pattern, kind in _PATTERNS.items() if pattern.match(head)), "")


def as_mp4(path: object) -> str:
    """The command that makes a video of any kind one that is read."""
    source = shlex.quote(str(path))
    return f"convert it: ffmpeg -i {source} -c:v libx264 -crf 18 -pix_fmt yuv420p new.mp4, and put new.mp4 in its place"
