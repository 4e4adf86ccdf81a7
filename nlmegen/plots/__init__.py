"""Figures of fits and checks: each function returns Axes or a Figure, none shows or saves anything."""
