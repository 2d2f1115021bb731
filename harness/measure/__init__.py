"""What runs inside a worker: inputs, the oracle, the check, timing, memory, ceilings. The only part that runs torch."""
