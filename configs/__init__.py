"""The shipped sweep configurations, as package data."""
