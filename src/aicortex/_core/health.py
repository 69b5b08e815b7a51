"""How a server does: a breaker, and statistics of what its streams were like; values, no I/O.

    state       next         when
    closed      open         a failure that is the server's fault; the next ones while it is half-open
    closed      busy         it said that its queue is full (429, 503): not broken, but not now
    open, busy  half-open    the pause is over: one request may look how it is
    half-open   closed       the request was answered
    half-open   open, busy   it was not; the pause is twice as long

What a caller did wrong (4xx) says nothing about a server. A pause is at least as long as the failure took its reader,
and as the server asked for: one that stalls is tried less often than one that refuses. Failures to connect are the
whole server's, others those of one model on it, so there are two of these for each request.
"""

from __future__ import annotations

import msgspec

FIRST_PAUSE = 1.0  # seconds until a server that failed is tried again
LONGEST_PAUSE = 120.0
LONGEST_REST = 900.0  # as long as a server may ask for itself in Retry-After, jitter included
JITTER = 0.2  # share of a pause that chance may add, so that many processes do not come back at once
MEMORY_SECONDS = 120.0  # in which half of what was measured is forgotten: it may have become better or worse
SHARE = 0.3  # of the newest measurement in the average
LOOK_SECONDS = 150.0  # how long one that looks keeps others from looking: a process that was killed must not for ever

UNREACHABLE_KINDS = frozenset({"refused", "unreachable", "connect_timeout", "tls", "proxy", "engine"})
BROKEN_KINDS = frozenset(
    {
        *UNREACHABLE_KINDS,
        *("reset", "closed", "bad_response", "server_error", "error"),
        *("first_token_timeout", "stalled", "truncated"),
    }
)
BUSY = "busy"
CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"


class Health(msgspec.Struct, frozen=True):
    """What is known of one server, or of one model on it; times are Unix seconds.

    `failures` counts those in a row; of the last one `kind` says what it was, `cost` how many seconds it took, `until`
    when the pause after it ends. `looked` is when the request began that looks if it is well again. `first_token`
    (seconds, without loading the model), `gap` (seconds between tokens, as readers saw them) and `pace` (tokens per
    second, as the server says) are averages in which the newest counts most, 0 where nothing was measured;
    `unreliable`, from 0 to 1, is such an average of its failures. `measured` is when they last changed, `answered` when
    it last gave an answer, `changed` when anything of this was last written; `requests` and `failed` count attempts.
    """

    failures: int = 0
    kind: str = ""
    cost: float = 0.0
    until: float = 0.0
    looked: float = 0.0
    first_token: float = 0.0
    gap: float = 0.0
    pace: float = 0.0
    unreliable: float = 0.0
    measured: float = 0.0
    answered: float = 0.0
    changed: float = 0.0
    requests: int = 0
    failed: int = 0

    def state(self, now: float) -> str:
        """Return "closed", "open", "busy" or "half-open"; the last also while somebody looks."""
        if not self.failures:
            return CLOSED
        if now < self.until <= now + LONGEST_REST:  # else the clock was set back
            return BUSY if self.kind == BUSY else OPEN
        return HALF_OPEN

    def is_looked_at(self, now: float) -> bool:
        """Whether a request is on its way that looks if it is well again."""
        return self.looked > 0 and 0 <= now - self.looked < LOOK_SECONDS

    def looked_at(self, now: float) -> Health:
        """Return the health once a request is on its way to look."""
        return msgspec.structs.replace(self, looked=now, changed=now)

    def left_alone(self, now: float) -> Health:
        """Return the health once nobody looks any more, and nothing was found out."""
        return msgspec.structs.replace(self, looked=0.0, changed=now)

    def answering(self, now: float) -> Health:
        """Return the health once an answer has begun: whoever waits for the server to be well need not wait longer."""
        well = msgspec.structs.replace(self, failures=0, kind="", cost=0.0, until=0.0, looked=0.0)
        return msgspec.structs.replace(well, answered=now, changed=now)

    def succeeded(self, now: float, *, first_token: float = 0.0, gap: float = 0.0, pace: float = 0.0) -> Health:
        """Return the health after an answer, with what it was like (0: not measured)."""
        weight = self.trust(now)
        return msgspec.structs.replace(
            self,
            failures=0,
            kind="",
            cost=0.0,
            until=0.0,
            looked=0.0,
            first_token=_averaged(self.first_token, first_token, weight),
            gap=_averaged(self.gap, gap, weight),
            pace=_averaged(self.pace, pace, weight),
            unreliable=self.unreliable * weight * (1 - SHARE),
            measured=now,
            answered=now,
            changed=now,
            requests=self.requests + 1,
        )

    def failed_with(
        self, kind: str, now: float, *, seconds: float, chance: float, retry_after: float | None = None
    ) -> Health:
        """Return the health after a failure of this kind, which took so many seconds; `chance` is from 0 to 1.

        Failures that are not the server's fault change nothing but end its being looked at. Of several requests that
        were under way when it failed, the first one counts: one death is one failure, whatever it took along.
        """
        if kind not in BROKEN_KINDS and kind != BUSY:
            return msgspec.structs.replace(self, looked=0.0, changed=now, requests=self.requests + 1)
        is_old_news = self.failures > 0 and now - seconds < self.measured
        failures = self.failures if is_old_news else self.failures + 1
        pause = min(max(FIRST_PAUSE, seconds) * 2.0 ** min(failures - 1, 10), LONGEST_PAUSE)
        pause = max(pause, min(retry_after or 0.0, LONGEST_REST / (1 + JITTER))) * (1 + JITTER * chance)
        return msgspec.structs.replace(
            self,
            failures=failures,
            kind=kind,
            cost=seconds,
            until=max(self.until, now + pause) if is_old_news else now + pause,
            looked=0.0,
            unreliable=SHARE + (1 - SHARE) * self.unreliable * self.trust(now),
            measured=now,
            changed=now,
            requests=self.requests + 1,
            failed=self.failed + 1,
        )

    def trust(self, now: float) -> float:
        """Return from 0 to 1 how much the averages still say."""
        if not self.measured:
            return 0.0
        return float(0.5 ** (max(now - self.measured, 0.0) / MEMORY_SECONDS))


def _averaged(before: float, new: float, trust: float) -> float:
    """Return the average with a new value, which counts the more the older the others are."""
    if not new or not before:
        return new or before
    share = 1 - (1 - SHARE) * trust
    return before + share * (new - before)
