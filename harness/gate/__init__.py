"""The paired gate: two arms, measured in pairs by the caller's harness, judged by a rule with a stated error rate."""
