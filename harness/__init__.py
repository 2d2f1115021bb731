"""The engine: configuration, plan, measurement, records and runs."""
