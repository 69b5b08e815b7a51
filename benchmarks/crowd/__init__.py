"""What many streams at once cost one process with an event loop, beside other clients: `python -m benchmarks.crowd`."""
