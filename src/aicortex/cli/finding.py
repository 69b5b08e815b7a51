"""What `aicortex doctor` finds: one thing that is well or not, and what to do about it."""

from __future__ import annotations

import msgspec

OK, WARNING, PROBLEM = "ok", "warning", "problem"
FULL_DISK = ("no space left on device", "disk is full", "disk full", "not enough space", "disk quota exceeded")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at: `about` what, what was found there, and the remedy ("" where none is needed)."""

    mark: str
    about: str
    finding: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"{'' if self.finding.endswith('?') else '.'} {self.remedy}" if self.remedy else ""
        return f"{self.mark:<8} {self.about}: {self.finding}{remedy}"


def says_disk_is_full(words: str) -> bool:
    """Whether an error of a server or of the system means that there is no room on a disk."""
    return any(sign in words.lower() for sign in FULL_DISK)
