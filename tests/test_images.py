"""Images: read, checked, and written as the base64 that Ollama takes."""

from __future__ import annotations

import io
import os
import re
import zlib
from base64 import b64decode, b64encode, urlsafe_b64encode
from pathlib import Path
from typing import Any
from urllib.parse import quote

import PIL.Image
import pytest

from aicortex import images
from aicortex.images import all_encoded, check_sight, encoded, kind_of
from aicortex.testing import FakeServer, Status


def picture(format: str) -> bytes:
    """Return a small image, as Pillow writes it."""
    file = io.BytesIO()
    PIL.Image.effect_noise((20, 20), 50).convert("RGB").save(file, format)
    return file.getvalue()


PNG = picture("PNG")
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WebP", "GIF", "BMP"])
def test_what_models_see(format: str) -> None:
    """An image of a kind that servers decode is written as base64, byte by byte what it was."""
    data = picture(format)
    assert kind_of(data) == format
    assert b64decode(encoded(data)) == data


def test_where_images_come_from(tmp_path: Path) -> None:
    """Paths, bytes of any kind and data URLs of any form give the same."""
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    base64 = b64encode(PNG).decode()
    lines = "\n".join(base64[at : at + 76] for at in range(0, len(base64), 76))
    given: list[Any] = [
        file,
        str(file),
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        f"data:image/png;base64,{base64}",
        f"DATA:image/png;charset=x;BASE64,{base64}",
        f"data:;base64,{base64.rstrip('=')}",
        f"data:image/png;base64,{urlsafe_b64encode(PNG).decode()}",
        f"data:image/png;base64,{quote(base64, safe='')}",
        f"data:image/png;base64,{lines}\n",
        f"data:image/png,{quote(PNG)}",
    ]
    assert all_encoded(given) == [base64] * len(given)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (SVG, "an SVG drawing"),
        (b"\xef\xbb\xbf  <SVG></SVG>", "an SVG drawing"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        ("größe".encode() * 300, "text"),
        (b"a" + "ö".encode() * 700, "text"),
        (b"BMW builds cars that are fast", "text"),
        (b"%PDF-1.7", "a PDF file"),
        (b"PK\x03\x04", "a ZIP file or an office document"),
        (zlib.compress(b"x"), "of an unknown kind"),
        (b"\x00\x01\x02", "of an unknown kind"),
        (b"text\xc3", "of an unknown kind"),
        (b"\x00\x00\x00\x18ftypheic\x00", "an HEIC image"),
        (b"\x00\x00\x00\x18ftypavif\x00", "an AVIF image"),
        (b"\x00\x00\x00\x18ftypisom\x00", "a video"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "sound or video"),
        (picture("TIFF"), "a TIFF image"),
        (picture("ICO"), "an icon"),
    ],
)
def test_what_models_do_not_see(data: bytes, words: str) -> None:
    """What is no image, or one that servers cannot decode, is refused by what it is."""
    with pytest.raises(ValueError, match=f"^the image is {words}, which models cannot see: give one of PNG, JPEG"):
        encoded(data)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("/does/not/exist.png", r"^images\[0\] \('/does/not/exist.png'\) cannot be read: No such file or directory$"),
        (Path("no.png"), r"^images\[0\] \('no.png'\) cannot be read: No such file"),
        (".", r"cannot be read: Is a directory"),
        ("a\0b", r"cannot be read: embedded null"),
        ("", r"cannot be read: No such file"),
        (__file__, r"^images\[0\] \('.*test_images.py'\) is text, which models cannot see"),
        (b"", r"^images\[0\] must have between 1 byte and 64 MB"),
        (0, r"^images\[0\] must be a path, bytes or a data URL, not int"),
        (None, "not NoneType"),
        ("https://ann:secret@example.org/a.png?key=1", "is the address https://example.org/…, and nothing is fetched"),
        ("file:///a.png", "is the address file:///…"),
        ("data:image/png;base64", r"^images\[0\] \(a data URL\): an image's data URL must look like 'data:image/png"),
        ("data:image/png;base64,", "must have between 1 byte"),
        ("data:image/png;base64,ab!d", "the base64 of its data URL is wrong: it has other characters"),
        ("data:image/png;base64,äöü", "the base64 of its data URL is wrong"),
        ("data:image/png;base64,\ud800", "the base64 of its data URL is wrong"),
        ("data:image/png;base64,abcde", "the base64 of its data URL is wrong: Invalid"),
        ("data:image/svg+xml;utf8," + quote(SVG), r"^images\[0\] \(a data URL\) is an SVG drawing"),
        (b64encode(PNG).decode(), "seems to be base64: write 'data:image/png;base64,' in front of it"),
    ],
)
def test_what_is_refused(image: Any, words: str) -> None:
    """Errors say which image it is, what is wrong with it, and no secret of an address."""
    with pytest.raises(ValueError, match=words) as caught:
        all_encoded([image])
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_list() -> None:
    """Images are a list, and it may be empty."""
    assert all_encoded([]) == []
    for wrong in ("a.png", PNG, bytearray(PNG), Path("a.png"), 5, {PNG}):
        with pytest.raises(ValueError, match="images is a list"):
            all_encoded(wrong)  # type: ignore[arg-type]


def test_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is too large is refused before it is in memory, and so are too many."""
    file = tmp_path / "large.png"
    with file.open("wb") as large:
        large.write(PNG)
        os.truncate(large.fileno(), images.MAX_BYTES + 1)  # takes no room
    with pytest.raises(ValueError, match=r"images\[0\] \('.*large.png'\) must have between 1 byte and 64 MB"):
        all_encoded([file])
    monkeypatch.setattr(images, "MAX_BYTES_IN_ALL", 2 * len(PNG) + 10)
    assert len(all_encoded([PNG, PNG])) == 2
    with pytest.raises(ValueError, match="the images have more than 0 MB together"):
        all_encoded([PNG, PNG, PNG])
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="must have between 1 byte"):
        all_encoded([f"data:image/png;base64,{b64encode(PNG).decode()}"])


def test_models_that_cannot_see() -> None:
    """A model that is known not to see is refused, with those that do."""
    check_sight("llava:7b", ("completion", "vision"))
    check_sight("llava:7b", ())
    with pytest.raises(ValueError, match=r"the model 'llama3' cannot see images: use a model that can: 'a', 'b'$"):
        check_sight("llama3", ("completion",), ["a", "b"])
    with pytest.raises(ValueError, match=r"cannot see images: no other model of these servers is known to; pull one"):
        check_sight("llama3", ("completion",))


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/images.md runs as it stands, with a photo and a model that sees."""
    page = (Path(__file__).parents[1] / "docs" / "images.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "photo.png").write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    with FakeServer(models=("gemma3:4b",)) as server:
        server.paths["/api/show"] = Status(200, {"capabilities": ["completion", "vision"]})
        monkeypatch.setenv("AICORTEX_SERVERS", server.url)
        exec(compile(code, "docs/images.md", "exec"), {})
        assert server.requests[-1].json["messages"][-1]["images"] == [encoded(PNG)]
