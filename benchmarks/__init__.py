"""What AI Cortex costs per token beside other clients, in one run: `python -m benchmarks`."""
