"""Every kind of probe keeps scikit-learn's conventions and answers bad input with one clear error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.estimators import Features
from probes.kinds import (
    InputError,
    KMeansProbe,
    LdaProbe,
    MlpProbe,
    MultinomialProbe,
    PcaProbe,
    RidgeProbe,
    SparseProbe,
)
from workbench.errors import DataError


@parametrize_with_checks(
    [
        RidgeProbe(),
        MultinomialProbe(),
        LdaProbe(),
        PcaProbe(),
        KMeansProbe(),
        MlpProbe(max_epochs=100),
        SparseProbe(),
        SparseProbe(selection="l1"),
    ]
)
def test_every_kind_keeps_the_conventions_of_scikit_learn(estimator, check):
    check(estimator)


ALL = [RidgeProbe, MultinomialProbe, LdaProbe, PcaProbe, KMeansProbe, MlpProbe, SparseProbe]
CLASSIFIERS = [make for make in ALL if make is not RidgeProbe]
ROWS, LABELS = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 2


@pytest.mark.parametrize("make", ALL)
def test_nan_rows_are_counted_and_located_in_fit_and_after(make):
    rows = ROWS.copy()
    rows[[4, 9], 0] = np.nan
    rows[12, 1] = np.inf
    with pytest.raises(InputError, match=r"3 of 20 rows hold NaN or infinite.*first is row 4"):
        make().fit(rows, LABELS)
    with pytest.raises(InputError, match=r"3 of 20 rows hold NaN"):
        make().fit(ROWS, LABELS).predict(rows)


@pytest.mark.parametrize("make", ALL)
def test_labels_that_do_not_match_the_rows_and_other_widths_are_refused(make):
    with pytest.raises(InputError, match=r"19 (labels|targets) for 20 rows"):
        make().fit(ROWS, LABELS[:19])
    with pytest.raises(ValueError, match=f"X has 3 features, but {make.__name__} is expecting 4"):
        make().fit(ROWS, LABELS).predict(ROWS[:, :3])


@pytest.mark.parametrize("make", CLASSIFIERS)
def test_one_class_only_is_refused(make):
    with pytest.raises(InputError, match="all 20 labels are of one class, 'a'"):
        make().fit(ROWS, ["a"] * 20)


@pytest.mark.parametrize("make", [PcaProbe, KMeansProbe, SparseProbe])
def test_kinds_for_two_classes_name_those_that_take_more(make):
    with pytest.raises(InputError, match="hold 3 classes.*MultinomialProbe"):
        make().fit(ROWS, np.arange(20) % 3)


@pytest.mark.parametrize("make", ALL)
def test_a_torch_tensor_gives_what_an_array_gives(make):
    tensor = torch.tensor(ROWS, dtype=torch.bfloat16)
    a, b = make().fit(tensor, torch.tensor(LABELS)), make().fit(tensor.double().numpy(), LABELS)
    assert np.allclose(a.predict(tensor), b.predict(tensor.float().numpy()))


@pytest.mark.parametrize("make", [LdaProbe, PcaProbe, KMeansProbe, SparseProbe])
def test_weights_on_prepared_rows_are_those_of_fit(make):
    """What `probes.sweep` asks of a kind with two classes."""
    label = ROWS[:, 0] + 0.5 * ROWS[:, 1] > 0
    probe = make().fit(ROWS, label)
    found = make().weights(Features.of(ROWS), label)
    assert np.allclose(found.coef, probe.coef_[0]) and np.isclose(found.intercept, probe.intercept_[0])


def test_an_error_is_both_ours_and_scikit_learns():
    assert issubclass(InputError, DataError) and issubclass(InputError, ValueError)
