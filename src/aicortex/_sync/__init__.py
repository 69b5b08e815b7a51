"""The synchronous front end: blocking sockets under the pure core."""
