"""A response whose production the drug stimulates: see the class."""

from typing import Any

import nlmegen as nl

InhibitedProduction: Any = type(nl.load_model("turnover_inhibited_production"))


class TurnoverStimulatedProduction(InhibitedProduction):
    """Indirect response III: the drug stimulates production. Time h, amount mg, concentration mg/L.

        response' = kin (1 + emax C / (ec50 + C)) - kout response

    With C, kin, kout and base as on the page turnover_inhibited_production (Dayneka, Garg & Jusko 1993, J
    Pharmacokinet Biopharm 21:457-478, doi:10.1007/BF01061691).
    """

    tvemax = nl.Theta(3.0, lower=0)

    def production(self, a, p):
        return p.kin * (1 + p.emax * self.saturation(a, p))
