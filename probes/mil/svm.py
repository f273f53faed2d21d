"""A linear support vector machine with a margin and a weight for each row, solved exactly in the primal.

    minimise over w, b   ½ ‖w‖² + Σ_i c_i max(0, m_i − y_i (w · x_i + b))²        y = ±1, m_i the margin asked for

The loss is the *squared* hinge: differentiable, and quadratic between the points where a row joins or leaves the active
rows (those short of their margin). So Newton steps with the Hessian of the active rows,

    H = [1 0; 0 0] + 2 Σ_active c_i [x_i; 1] [x_i; 1]ᵀ

end at the minimum after finitely many steps (Mangasarian 2002; Keerthi and DeCoste 2005); a step that does not decrease
the loss enough is halved. The intercept is not penalised. A step costs O(active rows · d² + d³): with fewer rows than
dimensions give the rows in a basis of their span, where w lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float64

MAX_STEPS = 100
RIDGE = 1e-10
"""Of the intercept's curvature, as a share of all weights: it has none where no row is active."""


@dataclass(frozen=True, eq=False)
class Separator:
    """A fitted decision function `x @ coef + intercept`.

    Attributes:
        coef: [d].
        intercept: scalar.
        gradient_norm: of the objective at the solution, as a share of its value at zero weights.
        converged: whether that is below the tolerance.
        n_iter: Newton steps.
    """

    coef: Float64[np.ndarray, " d"]
    intercept: float
    gradient_norm: float
    converged: bool
    n_iter: int

    def decision(self, x: np.ndarray) -> Float64[np.ndarray, " row"]:
        """[row] scores."""
        return x @ self.coef + self.intercept


def separate(
    x: Float64[np.ndarray, "row d"],
    y: Float64[np.ndarray, " row"],
    weight: Float64[np.ndarray, " row"],
    margin: Float64[np.ndarray, " row"] | float = 1.0,
    *,
    start: Separator | None = None,
    tol: float = 1e-8,
) -> Separator:
    """Solve for w and b.

    Args:
        x: [row, d] features, on one scale.
        y: [row] ±1.
        weight: [row] c_i, above 0.
        margin: [row] m_i, or one for all.
        start: a solution of a similar problem (another C) to begin at.
        tol: on the gradient's norm relative to that at zero weights.

    Example:
        >>> separate(np.array([[-1.0], [1.0]]), np.array([-1.0, 1.0]), np.full(2, 1e6)).coef.round(3)
        array([1.])
    """
    d = x.shape[1]
    m = np.broadcast_to(np.asarray(margin, dtype=np.float64), y.shape)

    def at(theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Objective, gradient, active rows."""
        short = m - y * (x @ theta[:d] + theta[d])
        active = np.flatnonzero(short > 0)
        pull = weight[active] * short[active]
        value = 0.5 * float(theta[:d] @ theta[:d]) + float(pull @ short[active])
        slope = -2 * pull * y[active]
        return value, np.append(theta[:d] + slope @ x[active], slope.sum()), active

    zero = float(np.linalg.norm(at(np.zeros(d + 1))[1]))
    theta = np.zeros(d + 1) if start is None else np.append(start.coef, start.intercept)
    value, gradient, active = at(theta)
    floor = RIDGE * float(weight.sum())
    n_iter = 0
    while (norm := float(np.linalg.norm(gradient))) > tol * max(zero, 1e-300) and n_iter < MAX_STEPS:
        root = np.sqrt(2 * weight[active])
        rows = x[active] * root[:, None]
        hessian = np.empty((d + 1, d + 1))
        hessian[:d, :d] = rows.T @ rows
        hessian[:d, d] = hessian[d, :d] = root @ rows
        hessian[d, d] = root @ root + floor
        hessian[np.arange(d), np.arange(d)] += 1
        step = scipy.linalg.solve(hessian, -gradient, assume_a="pos", check_finite=False)
        size, slope = 1.0, float(gradient @ step)
        new = at(theta + step)
        while new[0] > value + 1e-4 * size * slope and size > 1e-12:
            size /= 2
            new = at(theta + size * step)
        n_iter += 1
        if not new[0] < value and float(np.linalg.norm(new[1])) >= norm:
            break  # rounding: no step improves any more
        theta = theta + size * step
        value, gradient, active = new
    norm = float(np.linalg.norm(gradient)) / max(zero, 1e-300)
    return Separator(theta[:d], float(theta[d]), norm, norm <= max(tol, 1e-6), n_iter)
