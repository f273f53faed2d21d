"""Model organisms: small trained models whose inner workings are known, and what trains them.

>>> from workbench import organisms
>>> organisms.names()[:2]
['modular-addition', 'addition']
>>> organisms.get("addition").problems(1).records[0].extra["differs"] in (["a"], ["b"], ["operation"])
True
"""

from workbench.organisms.registry import get, names
from workbench.organisms.shipped import card, cards, models_folder

__all__ = ["card", "cards", "get", "models_folder", "names"]
