"""Exports, one small module a format."""
