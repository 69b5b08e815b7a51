"""Warnings that point at the user's own line, however deep inside the package something was noticed."""

from __future__ import annotations

import sys

PACKAGE = __name__.partition(".")[0]


def warn(words: str) -> None:
    """Give a RuntimeWarning for the line outside this package that led here."""
    import warnings

    frame, level = sys._getframe(1), 2  # which is `warnings`' number for it
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame, level = frame.f_back, level + 1
    warnings.warn(words, RuntimeWarning, stacklevel=level)
