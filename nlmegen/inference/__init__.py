"""Estimators, each an object handed to `fit`, all over one `Problem`."""
