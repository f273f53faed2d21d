"""Every kind of probe comes back from disk bit for bit, and files that cannot be read say why."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

from probes.estimators import LogisticProbe, MassMeanProbe, WhitenedMassMeanProbe
from probes.kinds import (
    CcsProbe,
    CrcProbe,
    KMeansProbe,
    LdaProbe,
    MlpProbe,
    MultinomialProbe,
    PcaProbe,
    RidgeProbe,
    SparseProbe,
)
from probes.leace import Leace
from probes.mil import Bags, SawmilProbe
from probes.saving import SAVED, load_probe, save_probe
from workbench.errors import DataError

MAKERS = {
    "logistic": LogisticProbe,
    "mass_mean": MassMeanProbe,
    "mass_mean_whitened": WhitenedMassMeanProbe,
    "ridge": RidgeProbe,
    "multinomial": MultinomialProbe,
    "lda": LdaProbe,
    "pca": PcaProbe,
    "k_means": lambda: KMeansProbe(n_init=2),
    "ccs": lambda: CcsProbe(n_restarts=2, n_steps=20),
    "crc": CrcProbe,
    "mlp": lambda: MlpProbe(width=3, max_epochs=3),
    "sparse": lambda: SparseProbe(k=2),
    "leace": lambda: Leace(target="classes"),
    "sawmil": lambda: SawmilProbe(penalties=(0.1, 1.0), inner_folds=2),
}
MANY = ("ridge", "multinomial", "lda", "mlp", "leace")


def same(a, b) -> bool:
    """Equal in type, dtype, shape and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, (np.ndarray, np.generic)):
        objects = a.dtype == object and a.tolist() == b.tolist()
        return a.dtype == b.dtype and a.shape == b.shape and (objects or a.tobytes() == b.tobytes())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def data(kind: str, seed: int, n: int, d: int, names: list):
    """Rows (or pairs) and labels that suit a kind."""
    random = np.random.default_rng(seed)
    label = random.permutation(np.arange(n) % (len(names) if kind in MANY else 2))
    if kind in ("ccs", "crc"):
        return random.normal(size=(n, 2, d)), np.array(names)[label]
    if kind == "sawmil":
        return Bags.of(list(random.normal(size=(n, 3, d)))), np.array(names)[label]
    rows = random.normal(size=(n, d)) * random.lognormal(0, 3, d)
    if kind == "ridge":
        return rows, np.stack([rows[:, 0] + label, random.normal(size=n)], 1) if seed % 2 else rows[
            :, 0
        ] + label
    return rows, np.array(names)[label]


# -- round trips ---------------------------------------------------------------------------------------


def test_every_kind_that_can_be_saved_is_tested_here():
    assert set(SAVED) == set(MAKERS)


@pytest.mark.parametrize("kind", MAKERS)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(12, 30),
    d=st.integers(2, 40),
    names=st.sampled_from([["no", "yes", "größer"], [0, 1, 5], [False, True], [-1.0, 3.0, 1e6]]),
)
@settings(max_examples=6, deadline=None)
def test_a_probe_comes_back_bit_for_bit(tmp_path_factory, kind, seed, n, d, names):
    path = tmp_path_factory.mktemp("probes") / "p.safetensors"
    rows, label = data(kind, seed, n, d, names)
    probe = MAKERS[kind]().fit(rows, label)
    back = load_probe(save_probe(probe, path))
    assert type(back) is type(probe)
    assert same(vars(back), vars(probe)), (vars(back), vars(probe))
    for method in ("decision_function", "predict", "predict_proba", "transform"):
        if hasattr(probe, method):
            assert same(getattr(back, method)(rows), getattr(probe, method)(rows))


def test_settings_of_every_type_and_names_of_features_come_back(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = pandas.DataFrame(np.random.default_rng(0).normal(size=(20, 2)), columns=["left", "right"])
    probe = RidgeProbe(alphas=np.array([1.0, 2.0]), per_output=True).fit(rows, rows.to_numpy())
    back = load_probe(save_probe(probe, tmp_path / "p"))
    assert same(back.alphas, probe.alphas) and same(back.feature_names_in_, probe.feature_names_in_)
    assert (
        load_probe(save_probe(RidgeProbe().fit(rows, rows["left"]), tmp_path / "p")).alphas
        == RidgeProbe().alphas
    )
    logistic = LogisticProbe(C=float("inf")).fit(rows, np.arange(20) % 2)
    assert float("inf") == load_probe(save_probe(logistic, tmp_path / "p")).C


def test_a_loaded_probe_can_be_fitted_again(tmp_path):
    rows, label = data("lda", 0, 30, 5, [0, 1])
    back = load_probe(save_probe(LdaProbe(shrinkage=0.3).fit(rows, label), tmp_path / "p"))
    assert same(vars(back.fit(rows, label)), vars(LdaProbe(shrinkage=0.3).fit(rows, label)))


def test_the_file_holds_tensors_and_json_alone(tmp_path):
    rows, label = data("mlp", 0, 30, 5, [0, 1])
    path = save_probe(MlpProbe(width=3, max_epochs=3).fit(rows, label), tmp_path / "p.safetensors")
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["probe"])
        assert "fitted.state_.hidden.weight" in opened.keys()  # noqa: SIM118
        assert opened.get_tensor("fitted.state_.hidden.weight").shape == (3, 5)
    assert header["kind"] == "mlp" and header["versions"]["scikit-learn"] and header["place"] is None


# -- what cannot be saved or read ----------------------------------------------------------------------


def rewritten(path, change, tensors=lambda t: t):
    """The same file with another header, signed or not as `change` leaves it."""
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["probe"])
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(header)
    found = tensors(found)
    if header.pop("sign", False):
        from probes.saving import _digest

        header["sha256"] = _digest(header, found)
    save_file(found, path, metadata={"probe": json.dumps(header)})


def nested(header, *keys, value):
    for key in keys[:-1]:
        header = header[key]
    header[keys[-1]] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda h: h.update(schema=2),
            "newer version \\(schema 2, by latent-workbench .*; this one reads 1\\)",
        ),
        (
            lambda h: h.update(kind="masmean", sign=True),
            "kind 'masmean'.*does not know.*Did you mean 'mass_mean'",
        ),
        (
            lambda h: h["params"].update(prior={"plain": 1}, sign=True) or h.update(sign=True),
            "arguments.*prior",
        ),
        (lambda h: h["fitted"].update(x_={"graph": 1}) or h.update(sign=True), "entry 'graph'.*upgrade"),
        (
            lambda h: h["fitted"].update(x_={"array": "gone"}) or h.update(sign=True),
            "cannot be made here: 'gone'",
        ),
        (lambda h: nested(h, "fitted", "n_iter_", value={"plain": 2}), "damaged.*SHA-256 differs"),
        (lambda h: h.pop("fitted"), "fitted is missing"),
    ],
)
def test_files_of_other_versions_and_damaged_ones_are_one_clear_error(tmp_path, change, message):
    rows, label = data("lda", 0, 20, 3, [0, 1])
    path = save_probe(LdaProbe().fit(rows, label), tmp_path / "p.safetensors")
    rewritten(path, change)
    with pytest.raises(DataError, match=message):
        load_probe(path)


def test_changed_tensors_cut_files_and_other_files_are_refused(tmp_path):
    rows, label = data("lda", 0, 20, 3, [0, 1])
    path = save_probe(LdaProbe().fit(rows, label), tmp_path / "p.safetensors")
    rewritten(path, lambda h: None, lambda t: t | {"fitted.coef_": t["fitted.coef_"] + 1})
    with pytest.raises(DataError, match="SHA-256 differs"):
        load_probe(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="damaged"):
        load_probe(path)
    with pytest.raises(DataError, match="no probe file"):
        load_probe(tmp_path / "nothing")
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(DataError, match="but not a probe"):
        load_probe(path)


def test_what_is_no_probe_or_not_fitted_is_not_saved_and_leaves_nothing(tmp_path):
    rows, label = data("lda", 0, 20, 3, [0, 1])
    strange = LdaProbe().fit(rows, label)
    strange.model_ = LogisticRegression()
    wrong = [
        (
            LogisticRegression().fit(rows, label),
            "LogisticRegression cannot be saved as a probe: the kinds are",
        ),
        (LdaProbe(), "not fitted: call fit"),
        (strange, "fitted.model_ is a LogisticRegression, which is neither"),
    ]
    for probe, message in wrong:
        with pytest.raises(DataError, match=message):
            save_probe(probe, tmp_path / "p.safetensors")
    assert list(tmp_path.iterdir()) == []
