"""Prompt sets: what ships with the project, and a user's own files, through one `load`.

>>> from workbench import datasets
>>> datasets.names()
['capitals', 'indirect-objects', 'plain-text', 'sentiment']
>>> pairs = datasets.load("indirect-objects")
>>> pairs.clean[0], pairs.answers[0]
('When Mary and John went to the store, John gave a drink to', ' Mary')
"""

from workbench.datasets.loader import check, generated, index, load, names
from workbench.datasets.paths import data_folder
from workbench.datasets.promptset import PromptSet
from workbench.datasets.records import Pair, Record, Statement, Text

__all__ = [
    "Pair",
    "PromptSet",
    "Record",
    "Statement",
    "Text",
    "check",
    "data_folder",
    "generated",
    "index",
    "load",
    "names",
]
