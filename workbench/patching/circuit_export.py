"""Circuits as something else: curves over their size, a networkx graph, a file.

Curves. m is the metric, C a circuit, "empty" the circuit without edges (the corrupt run, with `ablate="run"`):

    faithfulness(C)  =  (m(C) - m(empty)) / (m(clean) - m(empty))
    completeness(C)  =  1 - faithfulness(all edges but those of C)

A faithful circuit does what the model does: 1. A complete one leaves nothing to the other edges: 1. Both can leave 0 to
1 where edges work against each other. Wang et al. 2022 (2211.00593) compare circuit and model under knock-outs of any
part K of the circuit; the complement is the knock-out K = C alone, as in Marks et al. 2024 (2403.19647), who report
its faithfulness as such. Faithfulness of circuits by EAP-IG: Hanna et al. 2024 (2403.17806).

Files. `.json` is node-link data as networkx has it, with the scores of all edges of the graph besides, and can be
loaded again; `.graphml` and `.dot` (Graphviz) are for other programs. In all of them edges have `kind` "edge" and a
`score`. Where the heads of a block are nodes, edges of kind "inside" lead from what they read in common (`a3`) to those
that write, so that every path of the circuit is a path of the graph.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from workbench.errors import DataError, MetricError
from workbench.files import publish_file
from workbench.model.language_model import LanguageModel
from workbench.patching.circuit import Circuit, layer_of, reader_of
from workbench.patching.pairs import Pairs
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval, standard_error

if TYPE_CHECKING:
    import networkx as nx

FORMAT, SCHEMA = "latent-workbench circuit", 1
REACHED = (0.8, 0.9)


def curves_result(
    model: LanguageModel,
    runs: Pairs,
    circuits: Sequence[Circuit],
    sizes: Sequence[int],
    ends: Float[np.ndarray, "pair 2"],
    values: Float[np.ndarray, "pair size drawn 2"],
    settings: dict[str, Any],
    seed: int,
    seconds: float,
) -> Result:
    """Measured circuits of growing size as a `Result` of kind `circuit`.

    Args:
        model, runs: what was run on.
        circuits: the pruned circuit of each size.
        sizes: numbers of edges before pruning.
        ends: metric of the clean run and of the empty circuit.
        values: metric of the circuit (`drawn` 0) and of random ones, and of their complements.
        settings: for `attrs`; `n_random` says how many random circuits there are.
        seed: of the bootstrap.
        seconds: wall time.

    Returns:
        Dims `pair`, `size` and `random`; for `NAME` of `faithfulness` and `completeness`:
        `NAME`, `mean_NAME`, `NAME_se`, `NAME_low`, `NAME_high` (over pairs), `random_NAME`, `mean_random_NAME`,
        `random_NAME_sd` (over random circuits, of the mean over pairs), `NAME_p` (share of random circuits that do at
        least as well, the circuit counted as one of them); `metric`, `complement_metric`, `clean_metric`,
        `ablated_metric`; `n_edges` and `n_nodes` after pruning.
        Summary: `smallest` (the first size whose mean faithfulness is 0.8, 0.9, or None), `area` (mean height of the
        faithfulness curve over log size, with interval and p-value, beside the random circuits').

    Raises:
        MetricError: the metric does not tell a clean run from the ablated one.
    """
    name = (
        str(runs.metrics[0]) if len({str(m) for m in runs.metrics}) == 1 else f"{len(runs.metrics)} metrics"
    )
    span = ends[:, 0] - ends[:, 1]
    if (same := np.flatnonzero(np.abs(span) < 1e-6)).size:
        raise MetricError(
            f"Pair {same[0]}: {name} is {ends[same[0], 0]:.4f} in the clean and in the ablated run, so there is "
            "nothing for a circuit to carry. Choose a metric or a corrupt prompt that makes a difference."
        )
    share = (values - ends[:, 1, None, None, None]) / span[:, None, None, None]
    measured = {"faithfulness": share[..., 0], "completeness": 1 - share[..., 1]}
    first, by_size = ("pair", "size"), ("size",)
    variables: dict[str, Any] = {
        "metric": array(first, values[:, :, 0, 0], long_name=f"{name}, circuit"),
        "complement_metric": array(
            first, values[:, :, 0, 1], long_name=f"{name}, all edges but the circuit's"
        ),
        "clean_metric": array(("pair",), ends[:, 0], long_name=f"{name}, clean run"),
        "ablated_metric": array(("pair",), ends[:, 1], long_name=f"{name}, no edges"),
        "n_edges": array(by_size, [c.n_edges for c in circuits], long_name="edges after pruning"),
        "n_nodes": array(by_size, [c.n_nodes for c in circuits], long_name="nodes after pruning"),
    }
    for what, every in measured.items():
        own, drawn = every[:, :, 0], every[:, :, 1:]
        low, high = bootstrap_interval(own, seed)
        variables[what] = array(first, own, long_name=f"{what} (0 none, 1 all)")
        variables[f"mean_{what}"] = array(by_size, own.mean(0), long_name=f"mean {what} over pairs")
        variables[f"{what}_se"] = array(by_size, standard_error(own), long_name="standard error over pairs")
        variables[f"{what}_low"] = array(
            by_size, low, long_name="95 % bootstrap interval over pairs, lower end"
        )
        variables[f"{what}_high"] = array(
            by_size, high, long_name="95 % bootstrap interval over pairs, upper end"
        )
        if drawn.shape[2]:
            null, label = drawn.mean(0), f"{what} of random circuits"
            p = _p_value(own.mean(0), null)
            variables[f"random_{what}"] = array((*first, "random"), drawn, long_name=label)
            variables[f"mean_random_{what}"] = array(by_size, null.mean(-1), long_name=f"mean {label}")
            variables[f"random_{what}_sd"] = array(
                by_size, _spread(null), long_name=f"{label}, standard deviation"
            )
            variables[f"{what}_p"] = array(by_size, p, long_name="share of random circuits that do as well")
    coords = {"pair": np.arange(len(ends)), "size": np.array(sizes), "random": np.arange(values.shape[2] - 1)}
    whole = circuits[-1]
    attrs = {**settings, "metric": name, "n_pairs": len(ends), "n_edges_of_graph": int(whole.causal.sum())}
    data = xr.Dataset(variables, coords=coords, attrs=attrs)
    ids = [batch.ids[0].tolist() for pair in runs.pairs for batch in pair]
    where = provenance(
        model,
        tokens=ids,
        seed=seed,
        seconds={"circuits": seconds},
        settings={"ranking": dict(whole.metadata)},
    )
    return Result("circuit", data, where, _summary(data, whole, seed))


def _summary(data: xr.Dataset, largest: Circuit, seed: int) -> dict[str, Any]:
    mean = data["mean_faithfulness"].values
    smallest: dict[str, Any] = {}
    for level in REACHED:
        at = int(np.argmax(mean >= level))
        numbers = {name: int(data[name][at]) for name in ("size", "n_edges", "n_nodes")}
        smallest[str(level)] = (
            None if mean[at] < level else numbers | {"faithfulness": round(float(mean[at]), 4)}
        )
    own = _area(data["faithfulness"].values, data["size"].values)
    area: dict[str, Any] = {"circuit": round(float(own.mean()), 4)}
    if len(own) > 1:
        area["interval"] = [round(float(end), 4) for end in bootstrap_interval(own, seed)]
    if "random_faithfulness" in data:
        drawn = data["random_faithfulness"].transpose("pair", "random", "size").values
        null = _area(drawn, data["size"].values).mean(0)
        area |= {
            "random": round(float(null.mean()), 4),
            "p_value": round(float(_p_value(own.mean(), null)), 4),
        }
    strongest = largest.edges[0]._asdict() if largest.n_edges else None
    sizes = {"n_pairs": int(data.sizes["pair"]), "n_random": int(data.sizes["random"])}
    ends = {name: round(float(data[name].mean()), 4) for name in ("clean_metric", "ablated_metric")}
    return {**ends, **sizes, "n_edges_of_graph": data.attrs["n_edges_of_graph"], "smallest": smallest, "area": area,
            "strongest": strongest}  # fmt: skip


def _area(heights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[...] mean height of curves [..., size] over log size, by trapezoids."""
    if len(sizes) == 1:
        return heights[..., 0]
    x = np.log(np.maximum(sizes, 0.5))
    return np.trapezoid(heights, x, axis=-1) / (x[-1] - x[0])


def _p_value(own: np.ndarray, null: np.ndarray) -> np.ndarray:
    """[...] one-sided, of null [..., random]."""
    return (1 + (null >= np.asarray(own)[..., None] - 1e-9).sum(-1)) / (1 + null.shape[-1])


def _spread(null: np.ndarray) -> np.ndarray:
    return null.std(-1, ddof=1) if null.shape[-1] > 1 else np.full(null.shape[:-1], np.nan)


def to_graph(circuit: Circuit) -> nx.DiGraph:
    """The circuit as a networkx graph.

    Nodes, in the order of the forward pass, have `kind` ("input", "head", "attention", "mlp", "logits", and "common
    input" for what a block's heads read) and, inside blocks, `layer`. Edges have `kind` "edge" and `score`, or "inside"
    (see the module's text). The graph's attributes are the circuit's metadata.

    Example:
        >>> networkx.shortest_path(to_graph(circuit), "input", "logits")
        ['input', 'a0', 'a0.h1', 'm4', 'logits']
    """
    import networkx as nx

    graph = nx.DiGraph(**circuit.metadata)
    writes = {s: bool(row.any()) for s, row in zip(circuit.senders, circuit.matrix, strict=True)}
    reads = {r: bool(column.any()) for r, column in zip(circuit.receivers, circuit.matrix.T, strict=True)}
    touched = {name for names in (writes, reads) for name, any_edge in names.items() if any_edge}
    for name in sorted(touched, key=lambda name: _place(name, circuit)):
        layer = layer_of(name)
        graph.add_node(name, kind=_kind(name, circuit), **({} if layer is None else {"layer": layer}))
    for edge in circuit.edges:
        graph.add_edge(edge.sender, edge.receiver, kind="edge", score=edge.score)
    for sender, number in zip(circuit.senders, reader_of(circuit.senders, circuit.receivers), strict=True):
        receiver = circuit.receivers[number] if number >= 0 else sender
        if receiver != sender and {sender, receiver} <= touched:
            graph.add_edge(receiver, sender, kind="inside")
    return graph


def save(circuit: Circuit, path: str | Path) -> Path:
    """Write a circuit to a file; its ending (`.json`, `.graphml`, `.dot`) says how. A file there is replaced.

    Raises:
        DataError: another ending.
        WorkbenchError: the system refuses to write there.

    Example:
        >>> load(save(circuit, "ioi.json")).n_edges == circuit.n_edges
        True
    """
    target = Path(path)
    writers = {".json": _json, ".graphml": _graphml, ".dot": _dot}
    if target.suffix not in writers:
        raise DataError(
            f"Cannot tell from {target.name!r} how to write a circuit: end it in {', '.join(writers)}."
        )
    text = writers[target.suffix](circuit)
    with publish_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def load(path: str | Path) -> Circuit:
    """Read a circuit that `save` wrote as `.json`.

    Raises:
        DataError: no such file, not JSON, not a circuit, of a newer version, or damaged.
    """
    target = Path(path)
    try:
        raw = json.loads(target.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read the circuit {str(target)!r}: {error.strerror or error}.") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise DataError(
            f"{str(target)!r} is not JSON ({error}): only circuits saved as .json can be loaded."
        ) from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DataError(f"{str(target)!r} holds no circuit: give a .json file that `save` wrote.")
    if raw.get("schema") != SCHEMA:
        raise DataError(
            f"{str(target)!r} has schema {raw.get('schema')!r}, this version reads {SCHEMA}: upgrade latent-workbench."
        )
    try:
        senders, receivers = ([str(name) for name in raw[key]] for key in ("senders", "receivers"))
        scores = np.array(raw["scores"], dtype=np.float64).reshape(len(senders), len(receivers))
        matrix = np.zeros(scores.shape, dtype=bool)
        for edge in raw["edges"]:
            if edge["kind"] == "edge":
                matrix[senders.index(edge["source"]), receivers.index(edge["target"])] = True
        return Circuit(tuple(senders), tuple(receivers), matrix, scores, dict(raw["graph"]))
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise DataError(
            f"The circuit in {str(target)!r} is damaged: {type(error).__name__} {error}. Save it again."
        ) from error


def _json(circuit: Circuit) -> str:
    graph = to_graph(circuit)
    edges = [{"source": a, "target": b, **more} for a, b, more in graph.edges(data=True)]
    scores = np.where(circuit.causal, circuit.scores, None).tolist()  # type: ignore[call-overload]
    written = {
        "format": FORMAT, "schema": SCHEMA, "directed": True, "multigraph": False, "graph": dict(circuit.metadata),
        "nodes": [{"id": name, **more} for name, more in graph.nodes(data=True)], "edges": edges,
        "senders": circuit.senders, "receivers": circuit.receivers, "scores": scores,
    }  # fmt: skip
    return json.dumps(written, ensure_ascii=False, allow_nan=False, default=str)


def _graphml(circuit: Circuit) -> str:
    import networkx as nx

    graph = to_graph(circuit)
    for key, value in graph.graph.items():  # GraphML knows numbers and text
        if not isinstance(value, (str, int, float)):
            graph.graph[key] = json.dumps(value, default=str)
    return "\n".join(nx.generate_graphml(graph)) + "\n"


def _dot(circuit: Circuit) -> str:
    graph = to_graph(circuit)
    largest = max((abs(edge.score) for edge in circuit.edges), default=0.0) or 1.0
    lines = ["digraph circuit {", "  rankdir=BT;", "  node [shape=box];"]
    for name, more in graph.nodes(data=True):
        lines.append(f"  {_quoted(name)} [{', '.join(f'{k}={_quoted(v)}' for k, v in more.items())}];")
    for a, b, more in graph.edges(data=True):
        if more["kind"] == "inside":
            look = 'style=dashed, color="#999999"'
        else:
            colour = "#0072B2" if more["score"] >= 0 else "#D55E00"
            look = f'score="{more["score"]!r}", color="{colour}", penwidth={0.5 + 4 * abs(more["score"]) / largest:.2f}'
        lines.append(f"  {_quoted(a)} -> {_quoted(b)} [kind={_quoted(more['kind'])}, {look}];")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(value: object) -> str:
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _kind(name: str, circuit: Circuit) -> str:
    if layer_of(name) is None:
        return name
    if name not in circuit.senders:
        return "common input"
    return "head" if "." in name else {"a": "attention", "m": "mlp"}[name[0]]


def _place(name: str, circuit: Circuit) -> tuple[int, int, int]:
    """Sorts names by the order of the forward pass."""
    number = circuit.senders.index(name) if name in circuit.senders else -1
    layer = {"input": -1, "logits": len(circuit.senders)}.get(name, layer_of(name))
    return (layer or 0, int(name in circuit.senders), number)
