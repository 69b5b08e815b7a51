"""The pipeline that keeps the registry up to date: check, fetch, resolve, measure, apply.

`refresh` runs all of it; each step is a function that can be used alone:

    check    are the servers alive?                     GET /api/version
    fetch    what do they have?                         GET /api/tags, GET /api/ps, POST /api/show
    resolve  what does that mean next to what we knew?  no request
    measure  how fast are they? (only on demand)        POST /api/chat
    apply    write it down                              one transaction of the registry
"""

from __future__ import annotations

from aicortex.tools.applying import Report, apply
from aicortex.tools.asking import Progress
from aicortex.tools.checking import Checked, check
from aicortex.tools.fetching import Fetched, fetch
from aicortex.tools.measuring import measure
from aicortex.tools.refreshing import refresh
from aicortex.tools.resolving import Change, Resolution, resolve

__all__ = [
    "Change",
    "Checked",
    "Fetched",
    "Progress",
    "Report",
    "Resolution",
    "apply",
    "check",
    "fetch",
    "measure",
    "refresh",
    "resolve",
]
