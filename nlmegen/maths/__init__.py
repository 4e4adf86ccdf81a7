"""Mathematics without pharmacology: Taylor numbers, bijections, covariances, quadrature, Newton."""

from . import rules as rules  # registers the functions of torch for Taylor numbers
