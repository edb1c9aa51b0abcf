"""Edits and what they do: heads, controls, effects, permanent edits, export."""
