"""The conformance kit for laws of the loss.

::

    from flops_fit_core.testing import LawConformance

    class TestMyLaw(LawConformance):
        name = "mine"
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from flops_fit_core.config import PluginConfig
from flops_fit_core.errors import FitError
from flops_fit_core.plugins.protocols import LossLaw
from flops_fit_core.plugins.registry.law_offers import short_name
from flops_fit_core.records import Observation
from flops_fit_core.testing.kit import Kit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flops_fit_core.fitting.laws.coordinates import Coordinates

_DENSE = ("params", "tokens", "unique_tokens")
_LEVELS: Mapping[str, Sequence[float]] = {
    "params": (1e7, 5e7, 2e8, 1e9, 5e9),
    "tokens": (1e9, 5e9, 2e10, 1e11, 5e11),
    "unique_tokens": (7e8, 3e9, 1.5e10, 8e10),
}
_FURTHER = (1.0, 2.0, 4.0, 16.0, 64.0)
_MEAN_LOSS = 3.0


class LawConformance(Kit):
    """Tests for every law. Inherit, set ``name``, and run pytest.

    The runs are all combinations of the law's inputs. Their parameters lie near the law's starting values.

    Attributes:
        levels: Values of an input, by name, in the units of the runs. The default is 5 sizes, 5 numbers of tokens,
            4 of unique tokens, and 1 to 64 for further inputs.
        values: Parameters of the simulated runs, by name. The default lies between the law's starting values.
    """

    kind: ClassVar[str] = "law"
    levels: ClassVar[Mapping[str, Sequence[float]]] = {}
    values: ClassVar[Mapping[str, float]] = {}

    @pytest.fixture
    def law(self, chosen: PluginConfig[Any]) -> LossLaw:
        """The law."""
        law: LossLaw = chosen.spec.build()
        return law

    @pytest.fixture
    def columns(self, law: LossLaw) -> dict[str, NDArray[Any]]:
        """The inputs of the simulated runs, each of shape (n,)."""
        import numpy as np

        levels = [self.levels.get(name, _LEVELS.get(name, _FURTHER)) for name in law.inputs]
        points = np.array(list(itertools.product(*levels)))
        return {name: points[:, number] for number, name in enumerate(law.inputs)}

    @pytest.fixture
    def coordinates(self, law: LossLaw, columns: Mapping[str, NDArray[Any]]) -> Coordinates:
        """The coordinates in which the solver fits the law."""
        import numpy as np

        from flops_fit_core.fitting.laws.coordinates import Coordinates

        return Coordinates(law, {name: float(np.mean(np.log(column))) for name, column in columns.items()})

    @pytest.fixture
    def theta(self, coordinates: Coordinates, columns: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The parameters of the simulated runs in the solver's coordinates, shape (1, size)."""
        import numpy as np

        if self.values:
            return coordinates.theta({name: np.array([value]) for name, value in self.values.items()})
        starts = coordinates.starting_points(columns, _MEAN_LOSS)
        shift = 0.05 * np.cos(np.arange(starts.shape[1]))
        moved: NDArray[Any] = np.clip(starts[len(starts) // 2] + shift, *coordinates.bounds)[None]
        return moved

    # ------------------------------------------------------------------ declaration

    def test_its_parameters_are_the_keyword_arguments_of_its_formula(self, law: LossLaw) -> None:
        """``loss`` takes the inputs by position and the parameters by name."""
        arguments = list(inspect.signature(law.loss).parameters.values())
        if any(argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL) for argument in arguments):
            return
        names = [argument.name for argument in arguments if argument.kind is argument.KEYWORD_ONLY]
        declared = [parameter.name for parameter in law.parameters]
        assert sorted(names) == sorted(declared), f"parameters {declared}, but loss takes * {names}"
        positional = len(arguments) - len(names)
        assert positional == len(law.inputs), f"{len(law.inputs)} inputs, but loss takes {positional} by position"
        assert law.formula.strip(), "formula is empty: flops-fit laws prints it"

    def test_its_terms_are_over_inputs_and_parameters(self, law: LossLaw) -> None:
        """``over`` maps an input to an exponent: a parameter, ``-`` and a parameter, or nothing."""
        names = {parameter.name for parameter in law.parameters}
        for parameter in law.parameters:
            for column, exponent in parameter.over.items():
                assert column in law.inputs, f"{parameter.name}: over names {column!r}, inputs are {law.inputs}"
                assert not exponent or exponent.removeprefix("-") in names - {parameter.name}, (
                    f"{parameter.name}: over names the exponent {exponent!r}, parameters are {sorted(names)}"
                )

    # ------------------------------------------------------------------ formula

    def test_its_losses_have_a_row_per_fit(
        self, law: LossLaw, columns: Mapping[str, NDArray[Any]], coordinates: Coordinates, theta: NDArray[Any]
    ) -> None:
        """Parameters of shape (fits, 1) and inputs of shape (n,) give losses of shape (fits, n)."""
        import numpy as np

        single, several = (coordinates.loss(rows, columns) for rows in (theta, np.repeat(theta, 3, axis=0)))
        assert several.shape == (3, len(next(iter(columns.values()))))
        assert np.array_equal(several, np.repeat(single, 3, axis=0))

    def test_its_starting_points_give_losses(
        self, law: LossLaw, columns: Mapping[str, NDArray[Any]], coordinates: Coordinates
    ) -> None:
        """They are finite, and positive if errors of ln L have equal sizes."""
        import numpy as np

        starts = coordinates.starting_points(columns, _MEAN_LOSS)
        low, high = coordinates.bounds
        assert ((starts >= low) & (starts <= high)).all(), "a starting value lies outside its bounds"
        losses = coordinates.loss(starts, columns)
        assert np.isfinite(losses).all(), "a starting point gives a loss that is not finite"
        assert law.response == "loss" or (losses > 0).all(), "a starting point gives a loss that is not positive"

    def test_its_formula_has_exact_derivatives_by_complex_steps(
        self, columns: Mapping[str, NDArray[Any]], coordinates: Coordinates, theta: NDArray[Any]
    ) -> None:
        """By every parameter, and by N and D for the optimum. ``np.abs`` and ``np.logaddexp`` prevent them."""
        import numpy as np

        step = 1e-5
        for number, name in enumerate(coordinates.names):
            direction = np.zeros_like(theta)
            direction[0, number] = 1.0
            exact = np.imag(_complex_loss(coordinates, theta + 1e-30j * direction, columns, name)) / 1e-30
            up, down = (coordinates.loss(theta + sign * step * direction, columns) for sign in (1, -1))
            _compare(exact, (up - down) / (2 * step), name)
        for name in set(columns) & {"params", "tokens"}:
            moved = {**columns, name: columns[name] * (1 + 1e-30j)}
            exact = np.imag(_complex_loss(coordinates, theta, moved, name)) / 1e-30
            up, down = (
                coordinates.loss(theta, {**columns, name: columns[name] * np.exp(sign * step)}) for sign in (1, -1)
            )
            _compare(exact, (up - down) / (2 * step), name)

    def test_its_gradient_is_that_of_its_formula(
        self, law: LossLaw, columns: Mapping[str, NDArray[Any]], coordinates: Coordinates, theta: NDArray[Any]
    ) -> None:
        """For a law with a ``gradient``: the derivative by every parameter."""
        import numpy as np

        values = {name: value[:, None] for name, value in coordinates.values(theta).items()}
        arrays = [columns[name] for name in law.inputs]
        gradient = law.gradient(*arrays, **values)
        if gradient is None:
            return
        assert set(gradient) == set(coordinates.names)
        for name, slope in gradient.items():
            exact = np.imag(law.loss(*arrays, **{**values, name: values[name] + 1e-30j})) / 1e-30
            assert np.shape(slope) == exact.shape, f"{name}: shape {np.shape(slope)} instead of {exact.shape}"
            _compare(slope, exact, name)

    # ------------------------------------------------------------------ fits

    def test_its_losses_are_recovered_from_runs_without_noise(
        self, law: LossLaw, columns: Mapping[str, NDArray[Any]], coordinates: Coordinates, theta: NDArray[Any]
    ) -> None:
        """To 0.001%. Parameters that the runs cannot separate may differ."""
        import numpy as np

        from flops_fit_core.fitting.solvers.law_problem import LawProblem
        from flops_fit_core.fitting.solvers.objectives import LeastSquares

        losses = coordinates.loss(theta, columns)[0]
        y = np.log(losses) if law.response == "log-loss" else losses
        problem = LawProblem(coordinates, dict(columns), y)
        solved = problem.search(LeastSquares())
        worst = float(np.max(np.abs(problem.residuals(solved.theta))))
        assert worst < 1e-5, (
            f"the fit misses a loss by {worst:.2g}: choose starting values nearer to published values, declare "
            "over for factors of a power, or tighten the bounds"
        )

    def test_runs_without_an_input_are_refused(
        self, chosen: PluginConfig[Any], law: LossLaw, columns: Mapping[str, NDArray[Any]]
    ) -> None:
        """With a FitError that names the input. A law of N and D refuses too few runs."""
        from flops_fit_core.fitting import LawFitter

        further = [name for name in law.inputs if name not in _DENSE]
        runs = []
        for row in range(len(law.parameters)):
            params, tokens = (float(columns[key][row]) if key in columns else 1e9 for key in ("params", "tokens"))
            runs.append(
                Observation(id=str(row), params=params, tokens=tokens, flops=6 * params * tokens, loss=_MEAN_LOSS)
            )
        with pytest.raises(FitError) as error:
            LawFitter(law=short_name(chosen.name), draws=0).fit(runs)
        assert all(name in str(error.value) for name in further)


def _complex_loss(
    coordinates: Coordinates, theta: NDArray[Any], columns: Mapping[str, NDArray[Any]], name: str
) -> NDArray[Any]:
    try:
        return coordinates.loss(theta, columns)
    except TypeError as error:
        pytest.fail(f"the formula rejects a complex {name}: {error}. Replace np.logaddexp by log_sum_exp")


def _compare(slope: Any, expected: Any, name: str) -> None:
    """Fail if derivatives differ by more than 1e-5 of the largest."""
    import numpy as np

    size = float(np.max(np.abs(expected)))
    worst = float(np.max(np.abs(slope - expected)))
    assert np.isfinite(worst), f"the derivative by {name} is not finite"
    assert worst <= 1e-5 * size + 1e-12, (
        f"the derivative by {name} is off by {worst:.2g}, the largest derivative is {size:.2g}: np.abs, np.real "
        "and np.maximum of a parameter have no derivative by complex steps"
    )
