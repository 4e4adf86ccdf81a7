"""What a cohort leaves unused of the page that is simulated, though nothing is wrong with either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nlmegen.model.problem import Problem
from nlmegen.model.remarks import unasked
from nlmegen.simulate.cohort import Cohort
from nlmegen.simulate.regimen import Course


def cautions(problem: Problem, cohort: Cohort) -> list[str]:
    """Boluses where the page gives a duration or a rate, and effects between occasions without occasions.

    Args:
        problem: The page on the patients of the cohort.
        cohort: The cohort.

    Example:
        >>> import nlmegen as nl
        >>> cohort = Cohort(2, "100 every 12 x 2", times=[24])
        >>> cautions(nl.Problem(nl.load_model("theophylline"), cohort.population()), cohort)
        []
    """
    words = []
    courses = [
        course for regimen in cohort.arms.values() for course in regimen.courses if course.over is None
    ]
    for name, given in unasked(problem, boluses=True).items():
        own = [one for one in courses if _compartment(one, problem.structure.compartments) == name]
        instead = " or ".join(f'"{replace(own[0], over=word)}"' for word in given)
        words.append(
            f"the page gives a {' and a '.join(given)} for doses into {name}, and the regimen gives boluses; write"
            f" {instead} for infusions as the page has them"
        )
    levels = problem.levels
    if levels.r and not levels.changes and cohort.occasions is None:
        words.append(
            f"the page has random effects between occasions ({', '.join(problem.layout.kappa_names)}), and the cohort"
            ' has one occasion; give occasions= (on the command line --occasions), for example "dose"'
        )
    return words


def _compartment(course: Course, compartments: Sequence[str]) -> str:
    """The compartment that receives the doses of a course."""
    into = str(course.into or 0)
    return compartments[max(int(into) - 1, 0)] if into.isdigit() else into
