"""One verb, `fit`, one result, `Fit`, and `compare` and `likelihood_ratio` for several of them."""

from .comparison import Column as Column
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .ratio import LikelihoodRatio as LikelihoodRatio
from .ratio import likelihood_ratio as likelihood_ratio
from .result import Fit as Fit
from .result import fit as fit
