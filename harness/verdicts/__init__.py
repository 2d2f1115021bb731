"""From samples to estimates and judgements. Pure functions, no torch, no disk."""
