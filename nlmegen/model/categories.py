"""Categorical covariates, as a page reads them: `cov.sex["male"]` is 1 where sex is male and 0 elsewhere.

A text column of a table comes as codes with the names of its levels; a column of numbers (sex 0 and 1, race 1 to 4) is
read by its numbers as text, `cov.race["3"]`, and stays a number where the page takes it as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError, ModelError, nearest

if TYPE_CHECKING:
    from ..data.population import Population

MOST = 12
"""Levels that a message lists."""


class Category:
    """One categorical covariate, to be read by a level's name.

    Args:
        name: its column.
        codes: the code of every subject (and time): a tensor, or a symbol.
        levels: name of each level -> its code.
    """

    def __init__(self, name: str, codes: Any, levels: Mapping[str, float]) -> None:
        self._name, self._codes, self._levels = name, codes, levels

    def __getitem__(self, level: object) -> Any:
        return indicator(self._name, self._codes, self._levels, level)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ModelError(
            f"cov.{self._name} is categorical and no number; read one of its levels, for example"
            f' cov.{self._name}["{next(iter(self._levels))}"], which is 1 where that is so and 0 elsewhere'
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __neg__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = __float__ = __bool__ = (
        _refuse
    )
    __eq__ = __ne__ = __getattr__ = _refuse
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ModelError(
            'a categorical covariate is no number; read one of its levels, for example cov.sex["male"], which is 1'
            " where that is so and 0 elsewhere"
        )


class Numbers(Tensor):
    """A covariate of numbers that can be read by a level's name as well; what is computed from it is a plain tensor."""

    column: str
    levels: Mapping[str, float]
    read: Callable[[str], None]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        self.read(self.column)
        return indicator(self.column, self.as_subclass(Tensor), self.levels, key)


def indicator(name: str, codes: Any, levels: Mapping[str, float], level: object) -> Any:
    """1 where a covariate has a level, 0 elsewhere.

    Raises:
        DataError: no subject of the data has it.
        ModelError: what is asked for is no text.
    """
    if not isinstance(level, str):
        raise ModelError(f'cov.{name}[{level!r}]: a level is read by its name as text, cov.{name}["{level}"]')
    if level not in levels:
        shown = ", ".join(list(levels)[:MOST]) + (
            f" and {len(levels) - MOST} more" if len(levels) > MOST else ""
        )
        raise DataError(
            f'cov.{name}["{level}"]: no record of the data has this level (they have {shown}).{nearest(level, levels)}',
            column=name,
        )
    here = codes == levels[level]
    return here.to(torch.float64) if isinstance(here, Tensor) else torch.where(here, 1.0, 0.0)


class Categories:
    """The levels of the covariates of a population, and which of them a page reads by name.

    Args:
        population: the data.
        known: levels by column of other data that the page has been fitted to; of these there need be no record.
    """

    def __init__(self, population: Population, known: Mapping[str, tuple[str, ...]]) -> None:
        self._population, self._known = population, known
        self._coded = tuple(name for name, c in population.covariates.items() if getattr(c, "levels", ()))
        self._read: set[str] = set()
        self._levels: dict[str, dict[str, float]] = {}

    def levels(self, name: str) -> dict[str, float]:
        """Level -> code; a level without a record has one that nothing equals."""
        if name not in self._levels:
            covariate = self._population.covariates[name]
            if name in self._coded:
                found = {level: float(k) for k, level in enumerate(covariate.levels)}
            else:
                values = torch.cat((covariate.observation.flatten(), covariate.segment.flatten()))
                found = {f"{x:.15g}": x for x in sorted(set(values.tolist()))}
            self._levels[name] = found | {x: -1e300 for x in self._known.get(name, ()) if x not in found}
        return self._levels[name]

    def seen(self) -> dict[str, tuple[str, ...]]:
        """The levels of the covariates that the page reads by name, or that have no numbers."""
        return {name: tuple(self.levels(name)) for name in (*self._coded, *sorted(self._read))}

    def offered(self, covariates: dict[str, Tensor], trial: bool = False) -> dict[str, Any]:
        """The covariates as a page reads them.

        Args:
            covariates: codes or numbers by name.
            trial: all of them can be read by a level's name, and those that are will be from now on.
        """
        numbers = covariates.keys() - self._coded if trial else self._read
        if not numbers and not self._coded:
            return covariates
        made: dict[str, Any] = dict(covariates)
        made |= {name: Category(name, covariates[name], self.levels(name)) for name in self._coded}
        for name in numbers:
            wrapped = covariates[name].as_subclass(Numbers)
            wrapped.column, wrapped.read = name, self._read.add
            wrapped.levels = _Later(self, name)
            made[name] = wrapped
        return made

    def symbols(self, reader: Any) -> Any:
        """A reader of covariates as symbols, those with levels to be read by them."""
        return _Symbols(self, reader, {*self._coded, *self._read})


class _Symbols:
    """Covariates as symbols by name."""

    def __init__(self, categories: Categories, reader: Any, named: set[str]) -> None:
        self._categories, self._reader, self._named = categories, reader, named

    def __getattr__(self, name: str) -> Any:
        leaf = getattr(self._reader, name)
        return Category(name, leaf, self._categories.levels(name)) if name in self._named else leaf

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class _Later(Mapping[str, float]):
    """Levels that are looked up when somebody asks."""

    def __init__(self, categories: Categories, name: str) -> None:
        self._categories, self._name = categories, name

    def __getitem__(self, level: str) -> float:
        return self._categories.levels(self._name)[level]

    def __iter__(self) -> Any:
        return iter(self._categories.levels(self._name))

    def __len__(self) -> int:
        return len(self._categories.levels(self._name))
