"""Random directions to set beside one: of the same site, norm and scale, and never that direction itself.

    v_i ~ uniform on the sphere, drawn with seeds seed, seed + 1, …

Whoever tries the control as if it were a direction (`Direction.random(d, 0)`, to see that it does nothing) would
otherwise be given the very same vector as its control: a seed whose vector is the direction is passed over.
"""

from __future__ import annotations

from workbench.directions.checks import checked_seed
from workbench.directions.direction import Direction

SAME = 1 - 1e-6
"""|cosine| from which on two vectors are one."""


def random_controls(like: Direction, n: int, seed: int) -> list[Direction]:
    """`n` random directions with the site and scale of `like`, drawn with consecutive seeds.

    In one dimension there is nothing else to draw, and nothing is passed over.

    Example:
        >>> [r.cosine(d) for r in random_controls(d, 5, seed=0)]
    """
    found: list[Direction] = []
    at = checked_seed(seed)
    while len(found) < n:
        one = Direction.random(like, at)
        if like.width == 1 or abs(one.cosine(like)) < SAME:
            found.append(one)
        at += 1
    return found
