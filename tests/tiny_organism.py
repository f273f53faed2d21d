"""Organisms that are trained in a moment, and a progress that cancels."""

from __future__ import annotations

from workbench.errors import Cancelled
from workbench.organisms.organism import Plan, gpt2, llama
from workbench.organisms.tasks.addition import Addition
from workbench.organisms.tasks.modular_addition import ModularAddition
from workbench.progress import Silent


class Small(Addition):
    """Addition in 30 steps."""

    plan = Plan(steps=30, batch_size=16, warmup=5, evaluate_every=10, early_steps=8)
    snapshots = (0, 10, 30)
    weight_statistics = True

    def config(self):
        return llama(302, d_model=16, n_layers=2, n_heads=2, d_mlp=24, context=5, bos_token_id=0)


class SmallModular(ModularAddition):
    """Modular addition in 20 steps; its split depends on the seed."""

    plan = Plan(steps=20, batch_size=16, warmup=5, evaluate_every=10, precision="float32")
    snapshots = ()

    def config(self):
        return gpt2(114, d_model=16, n_layers=1, n_heads=2, d_mlp=24, context=3)


class StopAfter(Silent):
    """A cancel after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, n: int = 1) -> None:
        self.left -= n
        if self.left <= 0:
            raise Cancelled
