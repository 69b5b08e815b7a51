"""The asynchronous front end: it moves bytes and waits, with asyncio; what happens is decided in the core."""
