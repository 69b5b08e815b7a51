"""Images for models that can see: read, checked, and written as the base64 that Ollama takes."""

from __future__ import annotations

import os
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from typing import TypeAlias

Image: TypeAlias = "str | bytes | os.PathLike[str]"
MAX_BYTES = 64 * 1024 * 1024  # of one image: more than any camera's, and than a server would want to decode
MAX_BYTES_IN_ALL = 128 * 1024 * 1024  # of all images of one message, which stay in memory until it is answered
MEGABYTE = 1024 * 1024
WANTED = "a path, bytes or a data URL"
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(?:[^/?#]*@)?([^/?#]*)")
BASE64 = re.compile(rb"[A-Za-z0-9+/]*")
LONG = 60  # characters: no path by chance begins like base64 and is longer
BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # base64 of PNG, JPEG, GIF and WebP
SEEN = ("PNG", "JPEG", "WebP", "GIF", "BMP")  # what llama.cpp (stb_image) and Ollama decode
_PLAIN = str.maketrans("-_", "+/", " \t\r\n")  # the alphabet for addresses, and lines
_KINDS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\x00": "a TIFF image",
    b"MM\x00*": "a TIFF image",
    b"\x00\x00\x01\x00": "an icon",
    b"8BPS": "a Photoshop file",
    b"\xff\x0a": "a JPEG XL image",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL image",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 image",
    b"%PDF": "a PDF file",
    b"PK\x03\x04": "a ZIP file or an office document",
    b"\x1f\x8b": "a gzip file",
    b"\x1aE\xdf\xa3": "a video",
    b"ID3": "sound",
    b"OggS": "sound or video",
}
_BRANDS = {
    b"heic": "an HEIC image",
    b"heix": "an HEIC image",
    b"mif1": "an HEIC image",
    b"msf1": "an HEIC image",
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
}
_BMP_HEADERS = {size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)}  # "BM" alone may begin a text


def encoded(image: Image, *, title: str = "the image") -> str:
    """Return an image as base64.

    It is a path, bytes, or a data URL (base64 of either alphabet, or percent-encoded). Nothing is fetched. Raises
    ValueError, which calls it by its `title`, for what cannot be read, is larger than 64 MB, or begins like no PNG,
    JPEG, WebP, GIF or BMP.
    """
    data = _data(image, title)
    if not 0 < len(data) <= MAX_BYTES:
        raise ValueError(f"{title} must have between 1 byte and {MAX_BYTES // MEGABYTE} MB")
    kind = kind_of(data)
    if kind not in SEEN:
        raise ValueError(f"{title} is {kind}, which models cannot see: give one of {', '.join(SEEN)}")
    return b2a_base64(data, newline=False).decode()


def all_encoded(images: Sequence[Image]) -> list[str]:
    """Return the images of one message as base64; raises ValueError, also when they have more than 128 MB together."""
    if isinstance(images, str | bytes | bytearray | os.PathLike) or not isinstance(images, Sequence):
        raise ValueError("images is a list: write images=[...]")
    found: list[str] = []
    size = 0
    for index, image in enumerate(images):
        found.append(encoded(image, title=_title(index, image)))
        size += len(found[-1]) // 4 * 3
        if size > MAX_BYTES_IN_ALL:
            raise ValueError(f"the images have more than {MAX_BYTES_IN_ALL // MEGABYTE} MB together")
    return found


def check_sight(model: str, capabilities: Sequence[str], seeing: Sequence[str] = ()) -> None:
    """Raise ValueError for a model that is known not to see, with the names of those that do.

    `capabilities` are what its server says it can do, empty where it does not say: then the server decides.
    """
    if not capabilities or "vision" in capabilities:
        return
    if seeing:
        hint = f"use a model that can: {', '.join(map(repr, seeing[:5]))}"
    else:
        hint = "no other model of these servers is known to; pull one, for example with 'ollama pull gemma3'"
    raise ValueError(f"the model {model!r} cannot see images: {hint}")


def kind_of(data: bytes) -> str:
    """Return what some bytes are by how they begin: "PNG", "JPEG", "WebP", "GIF", "BMP", or words for what is none."""
    if data[:4] == b"RIFF":
        return "WebP" if data[8:12] == b"WEBP" else "sound or video"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video")
    if data[:2] == b"BM" and data[14:18] in _BMP_HEADERS:
        return "BMP"
    for beginning, kind in _KINDS.items():
        if data.startswith(beginning):
            return kind
    return _kind_of_text(data)


def _kind_of_text(data: bytes) -> str:
    beginning = data[:1000]
    try:
        words = beginning.decode()
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 3 or len(data) <= len(beginning):  # else a character is cut there
            return "of an unknown kind"
        words = beginning[: error.start].decode()
    if "\0" in words:
        return "of an unknown kind"
    start = words.lstrip("\ufeff \t\r\n").lower()
    if start.startswith("<svg") or (start.startswith(("<?xml", "<!--")) and "<svg" in start):
        return "an SVG drawing"
    return "a web page" if start.startswith(("<!doctype html", "<html")) else "text"


def _title(index: int, image: object) -> str:
    """Return how errors call an image: where it stands, and its path or what it is."""
    if isinstance(image, str) and image[:5].lower() == "data:":
        return f"images[{index}] (a data URL)"
    if isinstance(image, str) and ADDRESS.match(image):
        return f"images[{index}]"  # an address may have a password
    if isinstance(image, str | os.PathLike):
        return f"images[{index}] ({os.fspath(image)!r:.80})"
    return f"images[{index}]"


def _data(image: Image, title: str) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not isinstance(image, str | os.PathLike):
        raise ValueError(f"{title} must be {WANTED}, not {type(image).__name__}")
    if isinstance(image, str):
        if image[:5].lower() == "data:":
            return _from_data_url(image, title)
        if address := ADDRESS.match(image):
            where = f"{address[1]}://{address[2]}/…"
            raise ValueError(f"{title} is the address {where}, and nothing is fetched: give {WANTED}")
        if len(image) >= LONG and image.startswith(BEGINNINGS) and not os.path.exists(image):
            raise ValueError(f"{title} seems to be base64: write 'data:image/png;base64,' in front of it")
    try:
        with open(image, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{title} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _from_data_url(address: str, title: str) -> bytes:
    from urllib.parse import unquote, unquote_to_bytes

    head, comma, body = address.partition(",")
    if not comma:
        raise ValueError(f"{title}: an image's data URL must look like 'data:image/png;base64,…'")
    if len(body) > 4 * MAX_BYTES:  # base64 whose every letter is percent-encoded
        raise ValueError(f"{title} must have between 1 byte and {MAX_BYTES // MEGABYTE} MB")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        letters = unquote(body).translate(_PLAIN).rstrip("=").encode()
        if not BASE64.fullmatch(letters):
            raise ValueError("it has other characters than those of base64")
        return a2b_base64(letters + b"=" * (-len(letters) % 4))
    except ValueError as error:
        raise ValueError(f"{title}: the base64 of its data URL is wrong: {error}") from error
