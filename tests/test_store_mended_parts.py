"""Parts that earlier runs left beside a store are taken only where they are of this data and these settings.

All of the engine on Ray but Ray itself: units are computed one after another in this process.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from conftest import tiny_model
from test_collection_engine import SITES, same_bytes, texts

from workbench.collection import on_ray
from workbench.collection.on_ray import _Run
from workbench.collection.ray_cluster import Cluster
from workbench.collection.ray_source import _units
from workbench.collection.ray_worker import Described, Job, described
from workbench.collection.request import Request
from workbench.collection.sources import open_source
from workbench.collection.units import Unit
from workbench.errors import PositionError, WorkbenchError
from workbench.progress import Silent
from workbench.store import StoreWriter, open_store
from workbench.store.manifest import Cursor
from workbench.store.verify import verify

SIZES = {"rows_per_shard": 16, "tokens_per_batch": 24}
A, B = texts(40), texts(40, seed=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama").hf.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def about(model) -> Described:
    return described(model, {"device": "cpu"}, Request(sites=SITES, **SIZES))


@pytest.fixture
def run(monkeypatch, model, about):
    """`run(folder, data, shards_per_unit, only)`: one call's work; `only` the units that begin there arrive."""

    def run(
        folder: Path, data: list[str], shards_per_unit: int = 2, only: tuple[int, ...] | None = None
    ) -> list[int]:
        computed: list[int] = []

        class Rows:
            context = SimpleNamespace(execution_options=SimpleNamespace(preserve_order=False))

            def __init__(self, rows):
                self.rows = rows

            def map_batches(self, worker, fn_constructor_args, **_):
                self.worker = worker(*fn_constructor_args)
                return self

            def iter_rows(self):
                for row in self.rows:
                    if isinstance(row, Unit):
                        if only is not None and row.first not in only:
                            continue
                        computed.append(row.first)
                    yield {"result": self.worker({"unit": [row]})["result"][0]}

        monkeypatch.setattr(on_ray, "read_units", lambda _ray, *given, **how: Rows(_units(*given, **how)))
        monkeypatch.setattr(_Run, "_pool", lambda _: None)
        request, cluster = Request(sites=SITES, **SIZES), Cluster(1, 1, 0, None)
        with StoreWriter.open(folder, about.manifest, keep_parts=True) as writer:
            job = Job(model, {"device": "cpu"}, request, about.manifest, str(folder))
            _Run(None, writer, job, cluster, open_source(data), about, shards_per_unit, Silent()).all()
        return computed

    return run


@pytest.fixture
def interrupted(run):
    """A run of which only the units that begin at these shards were finished."""

    def interrupted(folder: Path, data: list[str], only: tuple[int, ...], shards_per_unit: int = 2) -> None:
        with pytest.raises(WorkbenchError, match="but those before them were not"):
            run(folder, data, shards_per_unit, only)

    return interrupted


def test_parts_of_this_data_are_taken_and_not_computed_again(run, interrupted, tmp_path):
    whole = run(tmp_path / "whole", A)
    interrupted(tmp_path / "s", A, only=(2, 6))
    assert run(tmp_path / "s", A) == [first for first in whole if first not in (2, 6)]
    assert same_bytes(tmp_path / "whole", tmp_path / "s") == []


@pytest.mark.parametrize("only", [(2,), (2, 4, 8)])
def test_parts_of_other_data_are_computed_anew(run, interrupted, tmp_path, only):
    whole = run(tmp_path / "whole", B)
    interrupted(tmp_path / "s", A, only)
    assert run(tmp_path / "s", B) == whole
    assert same_bytes(tmp_path / "whole", tmp_path / "s") == [] and verify(tmp_path / "s").ok


def test_parts_of_other_data_do_not_get_in_where_the_run_after_them_ends_early_too(
    run, interrupted, tmp_path
):
    """Shards 0 and 1 are of B, and A's part goes on there: it must not be moved in before B was read."""
    run(tmp_path / "whole", B)
    interrupted(tmp_path / "s", A, only=(2,))
    interrupted(tmp_path / "s", B, only=(0, 6))
    assert len(open_store(tmp_path / "s")) == 2 * 16
    run(tmp_path / "s", B)
    assert same_bytes(tmp_path / "whole", tmp_path / "s") == [] and verify(tmp_path / "s").ok


@pytest.mark.parametrize(("before", "now"), [(4, 2), (2, 4), (4, 3)])
def test_other_shards_per_unit_than_before(run, interrupted, tmp_path, before, now):
    run(tmp_path / "whole", A)
    interrupted(tmp_path / "s", A, (4, 12), before)
    run(tmp_path / "s", A, now)
    assert same_bytes(tmp_path / "whole", tmp_path / "s") == []


def test_after_a_part_of_the_store_was_copied_its_next_part_goes_on(run, interrupted, tmp_path):
    """The first unit begins where the store ends, in the middle of a unit of the earlier run."""
    run(tmp_path / "whole", A)
    interrupted(tmp_path / "s", A, only=(0, 4))
    for kind in ("shards", "index", "prompts"):
        for path in (tmp_path / "s" / kind).glob("00001.*"):
            path.unlink()
    assert 4 not in run(tmp_path / "s", A)
    assert same_bytes(tmp_path / "whole", tmp_path / "s") == []


def test_positions_that_found_nothing_are_an_error_in_a_repeated_call_too(
    model, about, tmp_path, run, interrupted
):
    """The prompts before the cursor are counted too."""
    data = ["red blue green one two"] * 20 + ["Mary went to the store"] * 20

    def read(positions: list[str], start: Cursor, first: int) -> None:
        request = Request(sites=SITES, positions=positions, **SIZES)
        list(_units(open_source(data), request, about.text_side, start, first, 2, {}))

    run(tmp_path / "s", data)
    records = open_store(tmp_path / "s").parts[0].records
    for record in (records[1], records[-2]):
        with pytest.raises(PositionError, match="zebra"):
            read(["all", "match:zebra"], record.cursor, record.number + 1)
        read(["all", "match:blue", "match:store"], record.cursor, record.number + 1)
