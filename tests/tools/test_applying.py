"""Writing a resolution down, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path

from aicortex.registry.entries import Condition, Measurement, ModelEntry, Observation
from aicortex.registry.store import Registry
from aicortex.tools import Change, Report, Resolution, apply

GOOD, BAD = "http://good:11434", "http://bad:11434"
MEASURED = Measurement(GOOD, "m:1", 90.0, 200.0, 40.0)
RESOLUTION = Resolution(
    (
        Observation(Condition(GOOD, 100.0, 100.0, "1.2.3", 0.5), (ModelEntry("m:1", "d1"),), (MEASURED,)),
        Observation(Condition(BAD, 100.0, error="nothing listens there")),
    ),
    (Change("new", GOOD), Change("new", GOOD, "m:1"), Change("slower", GOOD, "m:1", 90.0, 40.0, "tokens_per_second")),
)


def test_everything_is_written(tmp_path: Path) -> None:
    """Conditions, models and measurements stand in the registry afterwards."""
    with Registry(str(tmp_path / "registry.db")) as registry:
        apply(RESOLUTION, registry)
        snapshot = registry.snapshot()
    assert snapshot.conditions == {one.condition.url: one.condition for one in RESOLUTION.observations}
    assert snapshot.models[GOOD] == (ModelEntry("m:1", "d1"),)
    assert snapshot.measurements == {(GOOD, "m:1"): MEASURED}


def test_the_report(tmp_path: Path) -> None:
    """How many were asked, how many answered, what they have, and who did not; as JSON too."""
    with Registry(str(tmp_path / "registry.db")) as registry:
        report = apply(RESOLUTION, registry)
    assert (report.servers, report.answered, report.models) == (2, 1, 1)
    assert report.unreachable == {BAD: "nothing listens there"}
    assert report.changes == RESOLUTION.changes
    assert report.measurements == (MEASURED,)
    assert 0 < report.seconds < 60
    found = json.loads(json.dumps(report.to_dict()))
    assert set(found) == set(Report.__struct_fields__)
    assert found["changes"][2] == {
        "kind": "slower",
        "server": GOOD,
        "model": "m:1",
        "before": 90.0,
        "after": 40.0,
        "unit": "tokens_per_second",
    }


def test_nothing_to_write(tmp_path: Path) -> None:
    """An empty fleet gives an empty report."""
    with Registry(str(tmp_path / "registry.db")) as registry:
        report = apply(Resolution((), ()), registry)
    assert (report.servers, report.answered, report.models, report.unreachable) == (0, 0, 0, {})
