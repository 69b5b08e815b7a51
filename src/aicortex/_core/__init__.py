"""The pure core: bytes and times go in, events and decisions come out. No I/O, no clock, no chance."""
