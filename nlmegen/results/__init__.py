"""The folder of a fit: what `nlmegen fit` leaves on disk, and a `Fit` back from it.

fit.json             every number of the fit, schema 1; null where a number is not finite, with a note
parameters.csv       the parameter table            individuals.csv   etas and individual parameters
predictions.csv      the data with pred, ipred and residuals
covariance.csv, correlation.csv   of the estimates, where there are standard errors
model.py             the page                       data.csv          the table that was fitted
weights.safetensors  the model, the etas, the covariance matrix, the encoder
figures/, report.html
"""

from __future__ import annotations

from nlmegen.results.load import load_fit
from nlmegen.results.save import check_target, save_fit

__all__ = ["check_target", "load_fit", "save_fit"]
