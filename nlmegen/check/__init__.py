"""Whether a fit tells the truth about its data: residuals, prediction discrepancies, visual predictive checks."""
