"""`python -m tests.impatient_crowd MODEL...`: the crowd's server, which waits less for streams that do not come."""

from __future__ import annotations

from benchmarks.crowd import server

if __name__ == "__main__":
    server.NO_MORE = 0.3  # seconds
    server.main()
