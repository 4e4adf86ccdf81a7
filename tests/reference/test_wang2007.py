"""Wang (2007), table 1: all five columns by the methods; Laplace and quadrature by the arbiter too."""

from __future__ import annotations

import math

import pytest
from inference.pages import WangAdditive, WangProportional, wang_data
from reference.published import NUMBERS, minus2ll

import nlmegen as nl
from nlmegen.inference.agq import AGQ, Laplace
from nlmegen.inference.classic import Classic
from nlmegen.inference.foce import FO, FOCE, FOCEI

PAGES = {"additive": WangAdditive, "proportional": WangProportional}
NODES = {"laplace": 1, "quadrature": 41}
METHODS: dict[str, Classic] = {
    "fo": FO(evaluate=True),
    "foce": FOCE(evaluate=True),
    "focei": FOCEI(evaluate=True),
    "laplace": Laplace(evaluate=True),
    "quadrature": AGQ(nodes=41, evaluate=True),
}


@pytest.mark.parametrize("error", sorted(PAGES))
@pytest.mark.parametrize("method", METHODS)
def test_table_1_by_the_methods(error: str, method: str) -> None:
    found = METHODS[method].estimate(nl.Problem(PAGES[error](), wang_data()))
    assert found.ofv_source == method
    assert found.ofv == pytest.approx(NUMBERS["wang2007"][error][method], abs=6e-4)


@pytest.mark.parametrize("error", sorted(PAGES))
@pytest.mark.parametrize("method", sorted(NODES))
def test_table_1(error: str, method: str) -> None:
    found = minus2ll(PAGES[error](), wang_data(), NODES[method]) - 20 * math.log(2 * math.pi)
    assert found == pytest.approx(NUMBERS["wang2007"][error][method], abs=6e-4)


def test_the_same_model_through_a_bolus() -> None:
    """f = 10 exp(-k t) as 10 units into a volume of 1: the structure changes nothing."""

    class Bolus(WangProportional):
        def individual(self, theta, eta, cov):
            return dict(cl=theta.rate * eta.k.exp(), v=1.0)

        def observe(self, t, a, p):
            return dict(cp=a.central)

    table = wang_data().to_table()
    table["amt"] = 10.0 * (table["evid"] == 1)
    found, wanted = (
        nl.fit(page, data, nl.FOCEI(evaluate=True)).ofv
        for page, data in ((Bolus(), nl.read_nonmem(table)), (WangProportional(), wang_data()))
    )
    assert found == pytest.approx(wanted, abs=1e-9)
