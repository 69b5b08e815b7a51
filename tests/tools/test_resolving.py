"""What it means next to what was known: values in, values out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex import Server
from aicortex._core.failover import Failure
from aicortex.registry.entries import Condition, Measurement, ModelEntry, Observation, Snapshot
from aicortex.tools import Change, Checked, Fetched, Resolution, resolve

A, B, C = (Server(name) for name in "abc")
DEAD = Failure("refused", "connect", "refused the connection")
M1 = ModelEntry("m:1", "d1")
M2 = ModelEntry("m:2", "d2")


def has(*models: ModelEntry, at: float = 200.0, knows_loaded: bool = True) -> Fetched:
    return Fetched(Checked(at, "1.2.3", 0.5), models, knows_loaded)


def failed(at: float = 200.0) -> Fetched:
    return Fetched(Checked(at, failure=DEAD), failure=DEAD)


def knew(**models: tuple[ModelEntry, ...]) -> Snapshot:
    """A registry that saw these servers at the time 100, each with its models."""
    urls = {Server(name).label: listed for name, listed in models.items()}
    return Snapshot(conditions={url: Condition(url, 100.0, 100.0, "1.2.2", 0.4) for url in urls}, models=urls)


def after(resolution: Resolution, before: Snapshot) -> Snapshot:
    """The registry once the observations are applied."""
    observed = resolution.observations
    return msgspec.structs.replace(
        before,
        conditions={**before.conditions, **{one.condition.url: one.condition for one in observed}},
        models={**before.models, **{one.condition.url: one.models for one in observed if one.models is not None}},
        measurements={
            **before.measurements,
            **{(one.url, one.model): one for observation in observed for one in observation.measurements},
        },
    )


def test_the_first_refresh() -> None:
    """A server that answers for the first time is new, and so is each of its models."""
    resolution = resolve({A: has(M1)}, Snapshot())
    assert resolution.observations == (Observation(Condition(A.label, 200.0, 200.0, "1.2.3", 0.5), (M1,)),)
    assert resolution.changes == (Change("new", A.label), Change("new", A.label, "m:1"))


def test_nothing_has_changed() -> None:
    """Then there is nothing to tell."""
    assert resolve({A: has(M1)}, knew(a=(M1,))).changes == ()


def test_a_server_that_failed_keeps_what_was_known_of_it() -> None:
    """Its models stay, its condition has the error, and the time and version of its last answer."""
    resolution = resolve({A: failed()}, knew(a=(M1,)))
    condition = Condition(A.label, 200.0, 100.0, "1.2.2", 0.4, "refused the connection")
    assert resolution.observations == (Observation(condition, None),)
    assert condition.is_stale
    assert resolution.changes == (Change("lost", A.label, after="refused the connection"),)


def test_a_server_that_never_answered() -> None:
    """It was not lost, and when it answers it is new and not back."""
    first = resolve({A: failed(at=100.0)}, Snapshot())
    assert first.observations[0].condition == Condition(A.label, 100.0, error="refused the connection")
    assert first.changes == ()
    second = resolve({A: has()}, after(first, Snapshot()))
    assert second.changes == (Change("new", A.label),)


def test_lost_and_back() -> None:
    """Each is told once, however long it lasts; what came back is compared with what was there before."""
    registry = knew(a=(M1,))
    told = []
    for fetched in (failed(), failed(), has(M1), has(M1)):
        resolution = resolve({A: fetched}, registry)
        registry = after(resolution, registry)
        told.append([change.kind for change in resolution.changes])
    assert told == [["lost"], [], ["back"], []]


def test_an_alive_server_that_does_not_say_what_it_has() -> None:
    """It failed, and its models are not gone."""
    stuck = Fetched(Checked(200.0, "1.2.3", 0.5), failure=Failure("stalled", "reply", "did not answer in time"))
    (observation,) = resolve({A: stuck}, knew(a=(M1,))).observations
    assert observation.models is None
    assert (observation.condition.error, observation.condition.seen_at) == ("did not answer in time", 100.0)


def test_models_that_come_and_go() -> None:
    """A name that was not there is new, one that is not there any more is gone."""
    assert resolve({A: has(M2)}, knew(a=(M1,))).changes == (
        Change("new", A.label, "m:2"),
        Change("gone", A.label, "m:1"),
    )


def test_other_weights_under_the_same_name() -> None:
    """The digests tell; one that is not said proves nothing."""
    updated = ModelEntry("m:1", "d9")
    assert resolve({A: has(updated)}, knew(a=(M1,))).changes == (Change("changed", A.label, "m:1", "d1", "d9"),)
    assert resolve({A: has(ModelEntry("m:1"))}, knew(a=(M1,))).changes == ()
    assert resolve({A: has(M1)}, knew(a=(ModelEntry("m:1"),))).changes == ()


def test_a_model_that_moved() -> None:
    """Gone from one server and new on another with the same digest, under whatever name."""
    renamed = ModelEntry("n:1", "d1")
    assert resolve({A: has(), B: has(renamed)}, knew(a=(M1,), b=())).changes == (
        Change("moved", B.label, "n:1", A.label, B.label),
    )


def test_what_is_no_move() -> None:
    """A copy, a new name on the same server, another digest, an unknown one, and a server that only failed."""
    kinds = {
        "copied": resolve({A: has(M1), B: has(M1)}, knew(a=(M1,), b=())),
        "renamed": resolve({A: has(ModelEntry("n:1", "d1"))}, knew(a=(M1,))),
        "other": resolve({A: has(), B: has(M2)}, knew(a=(M1,), b=())),
        "unknown": resolve({A: has(), B: has(ModelEntry("m:1"))}, knew(a=(ModelEntry("m:1"),), b=())),
        "failed": resolve({A: failed(), B: has(M1)}, knew(a=(M1,), b=())),
    }
    assert {name: [change.kind for change in resolution.changes] for name, resolution in kinds.items()} == {
        "copied": ["new"],
        "renamed": ["new", "gone"],
        "other": ["new", "gone"],
        "unknown": ["new", "gone"],
        "failed": ["lost", "new"],
    }


def test_one_model_moves_to_one_place() -> None:
    """Of two new copies one has moved, from where it had the same name if there is a choice."""
    other = ModelEntry("n:1", "d1")
    changes = resolve({A: has(), B: has(), C: has(M1)}, knew(a=(other,), b=(M1,), c=())).changes
    assert changes == (Change("moved", C.label, "m:1", B.label, C.label), Change("gone", A.label, "n:1"))
    changes = resolve({A: has(), B: has(M1), C: has(M1)}, knew(a=(M1,), b=(), c=())).changes
    assert [change.kind for change in changes] == ["moved", "new"]


def test_the_same_digest_is_the_same_model() -> None:
    """What was learned of it at one server, now or before, holds for all; what a server says itself counts first."""
    told = ModelEntry("m:1", "d1", 7, "llama", ("llama",), "1B", "Q4", 4096, ("completion",))
    bare = ModelEntry("other:1", "d1", 8)
    for before in (Snapshot(), knew(c=(told,))):
        fetched = {A: has(told), B: has(bare)} if before == Snapshot() else {B: has(bare)}
        last = resolve(fetched, before).observations[-1].models
        assert last == (msgspec.structs.replace(told, name="other:1", size=8),)


def test_details_do_not_cross_to_another_digest() -> None:
    """The same name with other weights is another model; where nobody says digests, the name must do."""
    told = ModelEntry("m:1", "d1", capabilities=("completion",))
    (observation,) = resolve({A: has(ModelEntry("m:1", "d2"))}, knew(a=(told,))).observations
    assert observation.models == (ModelEntry("m:1", "d2"),)
    (observation,) = resolve({A: has(ModelEntry("m:1"))}, knew(a=(told,))).observations
    assert observation.models == (ModelEntry("m:1"),)
    anonymous = ModelEntry("m:1", capabilities=("completion",))
    (observation,) = resolve({A: has(ModelEntry("m:1"))}, knew(a=(anonymous,))).observations
    assert observation.models == (anonymous,)


def test_what_is_in_memory_stays_where_it_is_not_said() -> None:
    """A server that is loading a model does not say; what was promised before still holds."""
    loaded = ModelEntry("m:1", "d1", loaded_until=900.0)
    (kept,) = resolve({A: has(M1, knows_loaded=False)}, knew(a=(loaded,))).observations
    (said,) = resolve({A: has(M1)}, knew(a=(loaded,))).observations
    assert (kept.models, said.models) == ((loaded,), (M1,))


def measured(pace: float, wait: float, *, error: str = "") -> Measurement:
    return Measurement(A.label, "m:1", 150.0, wait, pace, error=error)


@pytest.mark.parametrize(
    ("before", "now", "changes"),
    [
        (measured(40, 200), measured(20, 200), [("slower", "tokens_per_second", 40, 20)]),
        (measured(20, 200), measured(40, 200), [("faster", "tokens_per_second", 20, 40)]),
        (measured(40, 200), measured(40, 600), [("slower", "first_token_ms", 200, 600)]),
        (measured(40, 600), measured(40, 200), [("faster", "first_token_ms", 600, 200)]),
        (measured(40, 200), measured(21, 590), []),
        (measured(40, 10), measured(40, 109), []),  # ten times as long, and nobody feels it
        (measured(40, 200), measured(0, 0, error="busy"), []),
        (measured(0, 0, error="busy"), measured(40, 200), []),
        (measured(0, 200), measured(40, 200), []),
    ],
)
def test_slower_and_faster(before: Measurement, now: Measurement, changes: list[tuple[str, str, float, float]]) -> None:
    """Twice the pace or three times the wait tells; what failed, or lacks the number, cannot be compared."""
    snapshot = msgspec.structs.replace(knew(a=(M1,)), measurements={(A.label, "m:1"): before})
    resolution = resolve({A: has(M1)}, snapshot, [now])
    assert resolution.observations[0].measurements == (now,)
    found = [(change.kind, change.unit, change.before, change.after) for change in resolution.changes]
    assert found == changes


def test_the_first_measurement_is_no_change() -> None:
    """There is nothing to compare it with."""
    assert resolve({A: has(M1)}, knew(a=(M1,)), [measured(40, 200)]).changes == ()


def test_changes_in_words() -> None:
    """Every kind of change says server, model and what was before."""
    url = A.label
    changes = {
        Change("new", url): "answers for the first time",
        Change("back", url, before="refused"): "answers again",
        Change("lost", url, after="refused"): "does not answer any more: refused",
        Change("new", url, "m:1"): "m:1 is new",
        Change("gone", url, "m:1"): "m:1 is gone",
        Change("moved", url, "m:1", B.label, url): "m:1 is here now, no more on http://b:11434",
        Change("changed", url, "m:1", "0" * 64, "1" * 64): "m:1 has other weights: "
        + "1" * 12
        + ", until now "
        + "0" * 12,
        Change("slower", url, "m:1", 41.96, 20.0, "tokens_per_second"): "m:1 is slower: 20 tokens/s, last time 42",
        Change("faster", url, "m:1", 900.4, 200.0, "first_token_ms"): "m:1 is faster: first token after 200 ms, "
        "last time 900 ms",
    }
    assert [str(change) for change in changes] == [f"http://a:11434: {words}" for words in changes.values()]


names = st.sampled_from(["m:1", "m:2", "n:1"])
entries = st.dictionaries(names, st.sampled_from(["d1", "d2", ""])).map(
    lambda found: tuple(ModelEntry(name, digest) for name, digest in found.items())
)
answers = st.one_of(st.just(failed()), entries.map(lambda models: has(*models)))


@given(st.lists(st.fixed_dictionaries({A: answers, B: answers, C: answers}), min_size=1, max_size=5))
def test_changes_account_for_every_difference(history: list[dict[Server, Fetched]]) -> None:
    """Whatever servers say, what was there, with the changes made, is what is there."""
    registry = Snapshot()
    for fetched in history:
        resolution = resolve(fetched, registry)
        expected = {(url, model.name) for url, models in registry.models.items() for model in models}
        for change in resolution.changes:
            if change.kind in ("new", "moved") and change.model:
                assert (change.server, change.model) not in expected
                expected.add((change.server, change.model))
            elif change.kind == "gone":
                expected.remove((change.server, change.model))
        moved = [change for change in resolution.changes if change.kind == "moved"]
        registry = after(resolution, registry)
        actual = {(url, model.name) for url, models in registry.models.items() for model in models}
        left = expected - actual
        assert actual <= expected
        assert sorted(url for url, _ in left) == sorted(str(change.before) for change in moved)
        for server, found in fetched.items():
            assert registry.conditions[server.label].is_stale == (found.failure is not None)
