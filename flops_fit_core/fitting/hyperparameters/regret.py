"""The loss given up by a choice of learning rate and batch, from the measured runs alone."""

from __future__ import annotations

import numpy as np

from flops_fit_core.fitting.hyperparameters.surface import Array


def regret(hyper: Array, ln_loss: Array, choice: Array) -> float:
    """Relative loss above the lowest run, at ``choice``, by linear interpolation between the runs of a cell.

    Seeds of one setting are averaged. A choice outside the runs is moved to the nearest value of the grid, so its
    regret is a lower bound. The lowest run is low by chance, too, so that a perfect choice has a regret of about
    one standard deviation of the noise.

    Args:
        hyper: ln lr and ln batch of the cell's runs; shape (runs, axes).
        ln_loss: Shape (runs,).
        choice: Shape (axes,).
    """
    settings, inverse = np.unique(np.round(hyper, 9), axis=0, return_inverse=True)
    inverse = inverse.ravel()
    losses = np.bincount(inverse, ln_loss) / np.bincount(inverse)
    at = np.clip(choice, settings.min(axis=0), settings.max(axis=0))
    return float(np.expm1(_interpolate(settings, losses, at) - losses.min()))


def _interpolate(settings: Array, losses: Array, at: Array) -> float:
    if settings.shape[1] == 1:
        return float(np.interp(at[0], settings[:, 0], losses))
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import QhullError

    try:
        value = float(LinearNDInterpolator(settings, losses)(at)[0])
    except QhullError:  # the runs lie on a line
        value = float("nan")
    nearest = int(np.argmin(np.square(settings - at).sum(axis=1)))
    return value if np.isfinite(value) else float(losses[nearest])
