"""A table explained before anything is fitted: what was understood, and what looks odd."""
