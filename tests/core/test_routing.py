"""Which server is asked first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicortex._core.health import Health
from aicortex._core.routing import LOADED_SECONDS, LOOK_SECONDS, STRATEGIES, Candidate, Choice, route

NOW = 1_000_000.0
LOADED = NOW + 60
FINE = Health(measured=NOW)


def measured(first_token: float, gap: float = 0.01) -> Health:
    return Health(first_token=first_token, gap=gap, measured=NOW, answered=NOW)


def broken(kind: str = "refused", *, until: float = NOW + 5, cost: float = 0.0) -> Health:
    return Health(failures=1, kind=kind, until=until, cost=cost, measured=NOW)


def candidate(label: str, first_token: float = 1.0, **more: object) -> Candidate:
    return Candidate(label, **{"model": measured(first_token), **more})  # type: ignore[arg-type]


def order(
    candidates: Iterable[Candidate],
    strategy: str = "fastest",
    *,
    chance: Callable[[], float] = lambda: 0.0,
    turn: int = 0,
    familiar: int | None = None,
) -> list[str]:
    found = list(candidates)
    choices = route(found, strategy, now=NOW, chance=chance, turn=turn, familiar=familiar)
    return [found[choice.server].label for choice in choices]


def first(candidates: list[Candidate], strategy: str, **more: object) -> Choice:
    return route(candidates, strategy, now=NOW, chance=lambda: 0.0, **more)[0]  # type: ignore[arg-type]


def test_the_fastest_is_the_one_with_the_least_wait() -> None:
    """By the time to the first token, where nothing else differs."""
    assert order([candidate("a", 3.0), candidate("b", 1.0), candidate("c", 2.0)]) == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"under_way": 0}, {"under_way": 1}),
        ({"under_way": 2, "slots": 4}, {"under_way": 2, "slots": 2}),
        ({"weight": 2.0}, {"weight": 1.0}),
        ({"loaded_until": LOADED, "model": Health()}, {"model": Health()}),
        (
            {"model": measured(1.0)},
            {"model": Health(first_token=1.0, gap=0.01, unreliable=0.5, measured=NOW, answered=NOW)},
        ),
        ({"server": FINE}, {"server": Health(unreliable=0.5, measured=NOW)}),
    ],
)
def test_what_makes_a_wait_longer(better: dict[str, object], worse: dict[str, object]) -> None:
    """Requests under way, few slots, little weight, a model to load, failures of the server or the model."""
    assert order([candidate("worse", **worse), candidate("better", **better)]) == ["better", "worse"]  # type: ignore[arg-type]


def test_a_fast_refusal_attracts_nothing() -> None:
    """A server that failed often counts as slow, however quick its refusals were."""
    quick = Health(first_token=0.01, gap=0.001, unreliable=0.9, measured=NOW, answered=NOW)
    assert order([candidate("quick", model=quick), candidate("slow", 5.0)]) == ["slow", "quick"]


def test_old_measurements_count_less() -> None:
    """One that was slow long ago is taken for a usual one again, so that it has a chance to show that it is not."""
    long_ago = Health(first_token=60.0, gap=0.01, measured=NOW - 3600, answered=NOW)
    usual = [candidate(name, 1.2) for name in "abc"]
    assert order([candidate("recently", 2.5), candidate("long ago", model=long_ago), *usual])[-1] == "recently"


def test_a_model_that_answered_lately_is_in_memory() -> None:
    """For as long as Ollama keeps it there."""
    lately = Health(answered=NOW - LOADED_SECONDS + 1)
    long_ago = Health(answered=NOW - LOADED_SECONDS - 1)
    assert order([candidate("long ago", model=long_ago), candidate("lately", model=lately)])[0] == "lately"


def test_balanced_takes_the_better_of_two() -> None:
    """Of those drawn; with two servers both are."""
    assert order([candidate("a", 2.0), candidate("b", 1.0)], "balanced") == ["b", "a"]
    random, seen = Random(1), Counter[str]()
    fleet = [candidate(name, number + 1.0) for number, name in enumerate("abcdefgh")]
    for _ in range(2000):
        seen[order(fleet, "balanced", chance=random.random)[0]] += 1
    assert seen["a"] > seen["b"] > seen["d"] > seen["g"]
    assert seen["h"] == 0


def test_balanced_draws_by_power() -> None:
    """A server of many slots is drawn more often than one of a single slot."""
    random, seen = Random(1), Counter[str]()
    fleet = [candidate(name, slots=8 if name == "d" else 1) for name in "abcdefgh"]
    for _ in range(2000):
        seen[order(fleet, "balanced", chance=random.random)[0]] += 1
    assert seen["d"] > 3 * max(seen[name] for name in "fgh")


def firsts(fleet: list[Candidate], times: int = 2000) -> Counter[str]:
    """Count who is asked first under `balanced`."""
    random = Random(1)
    return Counter(order(fleet, "balanced", chance=random.random)[0] for _ in range(times))


def test_balanced_draws_by_weight() -> None:
    """A server of ten times the weight is asked more often than it would be drawn among equals, 2 of 8."""
    assert firsts([candidate(name, weight=10.0 if name == "d" else 1.0) for name in "abcdefgh"])["d"] > 1200


def test_balanced_draws_the_slow_in_tokens_less_often() -> None:
    """Of servers whose first token is alike, one that writes ten times slower is drawn a tenth as often."""
    fleet = [candidate(name, model=measured(1.0, 0.1 if name == "d" else 0.01)) for name in "abcdefgh"]
    assert 0 < firsts(fleet)["d"] < 80


def test_a_pace_is_enough_to_know_the_answers_before() -> None:
    """A refresh measures only what the server says of itself: where requests are under way, that counts too."""
    slow, fast = (Health(first_token=1.0, pace=pace, measured=NOW, answered=NOW) for pace in (5.0, 100.0))
    assert order([candidate("slow", model=slow, under_way=1), candidate("fast", model=fast, under_way=1)])[0] == "fast"


def test_an_unknown_round_trip_is_far() -> None:
    """Of two at one place the one whose distance is known goes first, though the other one would answer sooner."""
    assert order([candidate("unknown", 0.5), candidate("known", round_trip=0.5)], "nearest")[0] == "known"


def test_nearest() -> None:
    """Those at this place first, then by round trip; an unknown one is far; a full one overflows."""
    fleet = [
        candidate("far", round_trip=0.001),
        candidate("unknown", nearness=1),
        candidate("near", nearness=2, round_trip=0.02),
        candidate("nearer", nearness=2, round_trip=0.01),
        candidate("full", nearness=3, under_way=1),
    ]
    assert order(fleet, "nearest") == ["nearer", "near", "unknown", "far", "full"]


def test_priority_overflows() -> None:
    """The lowest number first, and the next one once that is full."""
    fleet = [candidate("second", priority=2), candidate("first", priority=1)]
    assert order(fleet, "priority") == ["first", "second"]
    fleet[1] = candidate("first", priority=1, under_way=1)
    assert order(fleet, "priority") == ["second", "first"]
    assert first(fleet, "priority").why == "priority: 2"


def test_round_robin_goes_round_by_weight() -> None:
    """Each in turn; one of twice the weight twice in a round, spread over it."""
    fleet = [candidate(name) for name in "abc"]
    assert [order(fleet, "round_robin", turn=turn)[0] for turn in range(6)] == [*"abcabc"]
    fleet[1] = candidate("b", weight=2.0)
    assert "".join(order(fleet, "round_robin", turn=turn)[0] for turn in range(8)) in ("bacbbacb", "babcbabc")


def test_random_goes_by_weight() -> None:
    """One of three times the weight is first three times as often."""
    random, fleet = Random(1), [candidate("a"), candidate("b", weight=3.0)]
    seen = Counter(order(fleet, "random", chance=random.random)[0] for _ in range(4000))
    assert seen["b"] / seen["a"] == pytest.approx(3.0, rel=0.15)


def test_order_is_as_named() -> None:
    """However fast the others are."""
    assert order([candidate("a", 9.0), candidate("b", 1.0)], "order") == ["a", "b"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_those_that_rest_come_last(strategy: str) -> None:
    """Open, busy and draining ones stand behind the others under every strategy, soonest back first, draining last."""
    fleet = [
        candidate("draining", 0.1, is_draining=True),
        candidate("open", 0.1, server=broken(until=NOW + 9)),
        candidate("busy", 0.1, model=broken("busy", until=NOW + 3)),
        candidate("fine", 9.0),
    ]
    assert order(fleet, strategy) == ["fine", "busy", "open", "draining"]


@pytest.mark.parametrize("strategy", ["balanced", "fastest"])
def test_a_single_request_looks_how_a_server_is(strategy: str) -> None:
    """Once the pause is over it goes first, for one request; while that is under way it rests."""
    again = broken(until=NOW - 1)
    fleet = [candidate("a"), candidate("b", model=again)]
    assert first(fleet, strategy) == Choice(1, "a look whether it is well again after 'refused'", is_look=True)
    fleet[1] = candidate("b", model=again.looked_at(NOW))
    assert order(fleet, strategy) == ["a", "b"]
    assert not first(fleet, strategy).is_look


def test_a_look_that_could_take_long_is_not_forced() -> None:
    """One that kept its reader waiting has to win by what it promises; if it does, that is the look."""
    slow = broken("stalled", until=NOW - 1, cost=LOOK_SECONDS + 1)
    fleet = [candidate("a"), candidate("b", server=slow)]
    assert order(fleet) == ["a", "b"]
    fleet[0] = candidate("a", 9.0)
    assert first(fleet, "fastest").is_look


def test_where_the_user_ordered_a_look_waits_for_its_turn() -> None:
    """`priority`, `nearest` and `order` look when the server would be first anyway."""
    again = broken(until=NOW - 1)
    for strategy in ("order", "priority"):
        assert first([candidate("a"), candidate("b", priority=1, model=again)], strategy).server == 0
        assert first([candidate("a", model=again), candidate("b", priority=1)], strategy).is_look


@pytest.mark.parametrize("strategy", ["balanced", "fastest", "nearest"])
def test_a_conversation_stays_where_it_is_known(strategy: str) -> None:
    """Also where another server would answer sooner."""
    fleet = [candidate("fast", 0.1), candidate("knows it", 1.2)]
    assert order(fleet, strategy, familiar=1) == ["knows it", "fast"]
    assert first(fleet, strategy, familiar=1).why == "affinity: it has the conversation in its cache"


@pytest.mark.parametrize("strategy", ["priority", "round_robin", "random", "order"])
def test_other_strategies_know_no_conversations(strategy: str) -> None:
    """They put the servers in an order of the user's own."""
    fleet = [candidate("a"), candidate("knows it", priority=1)]
    assert order(fleet, strategy, familiar=1, chance=iter([0.9, 0.1]).__next__)[0] == "a"


@pytest.mark.parametrize(
    "more",
    [
        {"model": broken()},
        {"is_draining": True},
        {"under_way": 2},
        {"model": broken(until=NOW - 1, cost=9.0)},
        {"model": measured(1.5)},
    ],
)
def test_affinity_ends_where_it_would_harm(more: dict[str, object]) -> None:
    """A server that rests, was broken, has more than its share to do or is much slower is not preferred."""
    fleet = [candidate("fast", 0.1), candidate("knows it", 1.0, **more)]  # type: ignore[arg-type]
    assert order(fleet, familiar=1)[0] == "fast"


def test_the_share_grows_with_what_is_under_way() -> None:
    """A server may have 1.25 times its share: of 9 requests and this one on two equal servers, 7."""
    fleet = [candidate("fast", 9.0, under_way=3), candidate("knows it", 9.1, under_way=6)]
    assert order(fleet, familiar=1)[0] == "knows it"
    fleet = [candidate("fast", 9.0, under_way=2), candidate("knows it", 9.1, under_way=7)]
    assert order(fleet, familiar=1)[0] == "fast"


def test_reasons() -> None:
    """Each place in the order is explained in words."""
    fleet = [
        candidate("a", 0.5),
        candidate("b", 2.0),
        candidate("c", model=broken("busy", until=NOW + 4)),
        candidate("d", model=broken(until=NOW - 1).looked_at(NOW)),
        candidate("e", is_draining=True),
    ]
    choices = route(fleet, "balanced", now=NOW, chance=lambda: 0.0)
    assert [choice.why for choice in choices] == [
        "balanced: 0.5 s expected, b 2 s",
        "balanced: 2 s expected",
        "last: another request looks whether it is well again after 'refused'",
        "last: busy after 'busy' for 4 s more",
        "last: it is being drained",
    ]


HEALTHS = st.builds(
    Health,
    failures=st.integers(0, 3),
    kind=st.sampled_from(["busy", "refused", "stalled"]),
    cost=st.floats(0, 100),
    until=st.floats(NOW - 200, NOW + 200),
    looked=st.sampled_from([0.0, NOW, NOW - 1000]),
    first_token=st.floats(0, 100),
    gap=st.floats(0, 1),
    unreliable=st.floats(0, 1),
    measured=st.floats(NOW - 1000, NOW + 10),
    answered=st.floats(0, NOW),
)
CANDIDATES = st.builds(
    Candidate,
    label=st.just("x"),
    server=HEALTHS,
    model=HEALTHS,
    under_way=st.integers(0, 20),
    slots=st.integers(1, 8),
    weight=st.floats(0.01, 100),
    priority=st.integers(-3, 3),
    loaded_until=st.floats(0, NOW + 100),
    round_trip=st.floats(0, 1),
    nearness=st.integers(0, 3),
    is_draining=st.booleans(),
)


@given(
    candidates=st.lists(CANDIDATES, min_size=1, max_size=8),
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 100),
    turn=st.integers(0, 100),
    familiar=st.none() | st.integers(0, 9),
)
def test_every_server_stands_in_the_order_once(
    candidates: list[Candidate], strategy: str, seed: int, turn: int, familiar: int | None
) -> None:
    """Whatever is known of them; each with a reason, and only the first that is asked is ever forced to be a look."""
    choices = route(candidates, strategy, now=NOW, chance=Random(seed).random, turn=turn, familiar=familiar)
    assert sorted(choice.server for choice in choices) == list(range(len(candidates)))
    assert all(choice.why for choice in choices)
