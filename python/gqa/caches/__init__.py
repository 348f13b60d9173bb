"""Caches of keys and values: one row of slots for each sequence, or pages of a common pool."""
