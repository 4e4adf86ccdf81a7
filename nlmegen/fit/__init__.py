"""One verb, `fit`, one result, `Fit`, and `compare` for several of them."""

from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .result import Fit as Fit
from .result import fit as fit
