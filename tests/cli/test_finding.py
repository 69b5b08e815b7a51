"""What a finding of `aicortex doctor` looks like."""

from __future__ import annotations

import pytest

from aicortex.cli.finding import OK, PROBLEM, Finding, says_disk_is_full


def test_words() -> None:
    """A finding is one line: mark, what it is about, what was found, and what to do."""
    assert str(Finding(OK, "disk", "5 GB is free")) == "ok       disk: 5 GB is free"
    assert str(Finding(PROBLEM, "disk", "it is full", "Make room")) == "problem  disk: it is full. Make room"


@pytest.mark.parametrize(
    ("words", "is_full"),
    [
        ("HTTP 500: write /models/blobs/x: no space left on device", True),
        ("database or disk is full", True),
        ("Not enough space on the disk", True),
        ("HTTP 500: out of memory", False),
        ("", False),
    ],
)
def test_full_disks(words: str, is_full: bool) -> None:
    """A full disk is known by what systems say of it."""
    assert says_disk_is_full(words) == is_full
