"""What the tests of the Steer page and the tray share: a library of their own, spec kinds, directions."""

from __future__ import annotations

import json

import torch
from conftest import tiny_model

from dashboards.app import create_app
from dashboards.state import AppState
from workbench.directions import Direction
from workbench.jobs import JobWorker
from workbench.specs import parse_spec

SITE = "blocks.1.hook_resid_post"
SPEC = {
    "kind": "steer_direction",
    "positive": ["red blue green", "one red two", "blue is red", "the red one"],
    "negative": ["Mary went to store", "John and Tom", "Anna gave Tom", "Tom was in Rome"],
    "site": SITE,
    "prompts": ["Mary and John went to", "the capital of"],
    "strengths": [-1.0, 1.0],
    "units": "natural",
    "max_new_tokens": 6,
}


def tray_of_its_own(tmp_path, monkeypatch):
    """Fixture: an empty library."""
    monkeypatch.setenv("WORKBENCH_DIRECTIONS", str(tmp_path / "directions"))
    return tmp_path / "directions"


def direction(
    seed: int, site: str = "blocks.1.hook_resid_post", fingerprint: str = "", d: int = 48
) -> Direction:
    """A direction for tiny models, drawn with a seed."""
    vector = torch.randn(d, generator=torch.Generator().manual_seed(seed))
    return Direction.from_vector(
        vector, site=site, name=f"seed {seed}", source="test", model_fingerprint=fingerprint
    )


def asked(**more):
    """The spec of `SPEC`, with other fields."""
    return parse_spec({**SPEC, **more})


def tiny_llama():
    """Fixture `model`."""
    return tiny_model("llama")


def own_state(tmp_path, model):
    """Fixture `state`: a worker whose every model is the tiny one."""
    worker = JobWorker(tmp_path / "runs", load=lambda _spec: model)
    yield AppState.make(None, worker, "tiny-llama")
    worker.close()


def own_app(state):
    """Fixture `app`."""
    return create_app(worker=state.worker, model="tiny-llama")


def key(**parts: str) -> str:
    """A dictionary id as Dash writes it."""
    return json.dumps(parts, sort_keys=True, separators=(",", ":"))


def called(app, function: str, values: dict[str, object], *, changed: str):
    """Call a callback of the Steer page or the tray over HTTP, as the browser does.

    `values` by `id.property`; ids with ALL get those of the values that they match.
    """
    output, entry = next(
        (k, e)
        for k, e in app.callback_map.items()
        if "callback" in e
        and e["callback"].__module__ in ("dashboards.pages.steer", "dashboards.components.tray")
        and e["callback"].__qualname__.endswith(f".{function}")
    )

    def filled(wanted):
        if '["ALL"]' not in wanted["id"]:
            return {**wanted, "value": values.get(f"{wanted['id']}.{wanted['property']}")}
        type_ = json.loads(wanted["id"])["type"]
        found = []
        for name, value in values.items():
            at, prop = name.rsplit(".", 1)
            if at.startswith("{") and json.loads(at)["type"] == type_ and prop == wanted["property"]:
                found.append({"id": json.loads(at), "property": prop, "value": value})
        return found

    outputs = [
        dict(zip(("id", "property"), o.rsplit(".", 1), strict=True)) for o in output.strip(".").split("...")
    ]
    payload = {
        "output": output,
        "outputs": outputs if output.startswith("..") else outputs[0],
        "inputs": [filled(v) for v in entry["inputs"]],
        "state": [filled(v) for v in entry["state"]],
        "changedPropIds": [changed],
    }
    answer = app.server.test_client().post("/_dash-update-component", json=payload)
    assert answer.status_code in (200, 204), answer.text
    return json.loads(answer.data) if answer.data else {}
