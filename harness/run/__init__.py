"""From a plan to launches: fork servers and the scheduler."""
