"""The explicit step: Tsitouras' pair of orders 5 and 4, seven stages, the last of which is the first of the next step.

Ch. Tsitouras (2011), Comput. Math. Appl. 62, 770-775, doi:10.1016/j.camwa.2011.06.002.
"""

from __future__ import annotations

from nlmegen.structure.equations import Components
from nlmegen.structure.kernel.emit import VECTOR, Emitter, Module
from nlmegen.structure.kernel.norm import Length, Norm
from nlmegen.structure.kernel.protocol import STEP_PARAMETERS, TIME, Method

# fmt: off
STAGES = (
    (),
    (0.161,),
    (-0.008480655492356989, 0.335480655492357),
    (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
    (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
    (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
)
NODES = (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0)
ERROR = (-0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629,
         0.5823571654525552, -0.45808210592918697, 1 / 66)
# fmt: on
COUNT = len(STAGES)


def _sum(e: Emitter, blocks: list[str], weights: tuple[float, ...], c: int | str) -> str:
    """The weighted sum of row c of the stages' rates."""
    total = e.mul(e.load(blocks[0], c), e.constant(weights[0]))
    for block, weight in zip(blocks[1:], weights[1:], strict=True):
        total = e.fma(e.load(block, c), e.constant(weight), total)
    return total


def write(module: Module, components: Components) -> None:
    """Add `step` to a module that has `f`: the trial state y + hh sum_j a_ij k_j of each stage, then the norm."""
    size = len(components.keys)
    with module.define("step", STEP_PARAMETERS) as e:
        length, time = Length(e), e.load("%T", TIME)
        hh = length.value
        blocks = [e.row("%K", j * size) for j in range(COUNT)]
        for i in range(1, COUNT):
            with e.loop(size) as c:
                slope = _sum(e, blocks[:i], STAGES[i], c)
                e.store("%YN", c, e.fma(slope, hh, e.load("%Y", c)))
            at = time if NODES[i] == 0.0 else e.fma(hh, e.constant(NODES[i]), time)
            e.invoke("f", "ptr %YN", "ptr %P", "ptr %W", "ptr %F", f"{VECTOR} {at}", f"ptr {blocks[i]}")
        norm = Norm(e, components, order=5)
        for k in range(size):
            norm.add(k, e.mul(_sum(e, blocks, ERROR, k), hh))
        accepted = norm.decide(length)
        with e.loop(size) as c:
            e.store("%Y", c, e.select(accepted, e.load("%YN", c), e.load("%Y", c)))
            e.store("%K", c, e.select(accepted, e.load(blocks[-1], c), e.load("%K", c)))


EXPLICIT = Method(name="explicit", rows=lambda components: COUNT * len(components.keys), write=write)
