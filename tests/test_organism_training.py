"""Training: the same weights every time, also through interruptions; what is written loads as any other model."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_organism import Small, SmallModular, StopAfter

import workbench as wb
from workbench.errors import Cancelled, DataError, ModelError, PromptError
from workbench.organisms import shipped
from workbench.organisms.organism import Plan
from workbench.organisms.tokenizer import word_tokenizer
from workbench.organisms.training import loss_of, snapshots_of, train
from workbench.organisms.weight_statistics import COLUMNS, weight_statistics


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole():
    """The training without interruption."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    trained = train(Small(), seed=3)
    torch.set_num_threads(before)
    return trained


def assert_same(one, other) -> None:
    assert one.step == other.step
    assert one.curve.early_losses == other.curve.early_losses and one.curve.points == other.curve.points
    theirs = dict(other.model.named_parameters())
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_training_twice_gives_bit_equal_weights_and_another_seed_others(whole):
    assert_same(train(Small(), seed=3), whole)
    assert len(whole.curve.early_losses) == 8
    assert [point["step"] for point in whole.curve.points] == [10, 20, 30]
    assert whole.curve.points[-1]["loss"] < whole.curve.points[0]["loss"]
    other = train(Small(), seed=4, steps=2).model.get_input_embeddings().weight
    assert not torch.equal(other, train(Small(), seed=3, steps=2).model.get_input_embeddings().weight)


@pytest.mark.parametrize("steps", [1, 9, 10, 17, 30])
def test_a_cancelled_training_goes_on_to_the_same_weights_and_curve(whole, tmp_path, steps):
    with pytest.raises(Cancelled):
        train(Small(), seed=3, folder=tmp_path / "w", progress=StopAfter(steps))
    assert json.loads((tmp_path / "w" / "state.json").read_text())["step"] == steps
    assert_same(train(Small(), seed=3, folder=tmp_path / "w"), whole)


def test_a_killed_training_goes_on_from_its_last_save(whole, tmp_path, monkeypatch):
    # A kill runs no handler: what the handler would write is thrown away.
    train(Small(), seed=3, folder=tmp_path / "w", steps=12)
    with monkeypatch.context() as patched:
        patched.setattr("workbench.organisms.training._save", lambda *_: None)
        with pytest.raises(Cancelled):
            train(Small(), seed=3, folder=tmp_path / "w", progress=StopAfter(25))
    assert json.loads((tmp_path / "w" / "state.json").read_text())["step"] == 12
    assert_same(train(Small(), seed=3, folder=tmp_path / "w"), whole)
    assert_same(train(Small(), seed=3, folder=tmp_path / "w"), whole)  # finished: nothing more to do


@pytest.mark.parametrize("where", ["batch", "evaluate"])
def test_an_interruption_in_the_middle_of_a_step_leaves_no_half_state(whole, tmp_path, where):
    class Interrupted(Small):
        def batch(self, seed, step):
            if where == "batch" and step == 15:
                raise KeyboardInterrupt
            return super().batch(seed, step)

        def evaluate(self, model, *, full=False):
            if where == "evaluate":
                raise KeyboardInterrupt
            return super().evaluate(model, full=full)

    train(Small(), seed=3, folder=tmp_path / "w", steps=5)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(), seed=3, folder=tmp_path / "w")
    assert json.loads((tmp_path / "w" / "state.json").read_text())["step"] == (15 if where == "batch" else 5)
    assert_same(train(Small(), seed=3, folder=tmp_path / "w"), whole)


def test_snapshots_are_the_weights_of_their_steps(whole, tmp_path):
    train(Small(), seed=3, folder=tmp_path / "w")
    kept = sorted(snapshots_of(tmp_path / "w").iterdir())
    assert [path.name for path in kept] == [f"step-{step:05d}.safetensors" for step in Small.snapshots]
    for path, model in zip(
        kept, (Small().build(3), train(Small(), seed=3, steps=10).model, whole.model), strict=True
    ):
        weights = load_file(path)
        assert weights.keys() == dict(model.named_parameters()).keys()
        assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())


def test_a_folder_of_another_training_is_refused(tmp_path):
    train(Small(), seed=3, folder=tmp_path / "w", steps=2)

    class Slower(Small):
        plan = replace(Small.plan, learning_rate=1e-4)

    class Renamed(Small):
        name = "subtraction"

    for organism, seed, word in ((Small(), 4, "seed"), (Slower(), 3, "plan"), (Renamed(), 3, "organism")):
        with pytest.raises(ModelError, match=f"w holds a training with another {word}"):
            train(organism, seed=seed, folder=tmp_path / "w")


def test_a_loss_that_is_not_finite_stops_the_training():
    class Broken(Small):
        def forward(self, model, ids, step=None):
            return super().forward(model, ids, step) * float("nan" if step == 3 else 1)

    with pytest.raises(ModelError, match="addition: the loss of step 3 is nan; lower the learning rate"):
        train(Broken(), seed=3)


def test_figures_are_measured_on_the_split_of_the_trainings_own_seed():
    for seed in (0, 2):
        trained = train(SmallModular(), seed=seed)
        fresh = SmallModular().evaluate(trained.model, seed=seed)
        assert {k: trained.curve.points[-1][k] for k in fresh} == fresh
        assert fresh != SmallModular().evaluate(trained.model, seed=5)


def test_the_loss_is_the_mean_over_what_is_learnt():
    organism = Small()
    model, batch = organism.build(0), organism.batch(0, 0)
    logits = model(input_ids=batch.ids).logits.detach().double().numpy()[:, -1]
    normal = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ours = -normal[np.arange(len(logits)), batch.targets[:, -1].numpy()].mean()
    assert loss_of(organism, model, batch).item() == pytest.approx(ours, rel=1e-5)
    one_hot = torch.nn.functional.one_hot(batch.targets.clamp(0), 302).float()
    assert loss_of(organism, model, replace(batch, likely=one_hot)).item() == pytest.approx(ours, rel=1e-5)


def test_weight_statistics_are_numpys():
    model = SmallModular().build(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)  # biases begin at zero
    values = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    fused = values.pop("transformer.h.0.attn.c_attn.weight")
    matrices = [v for v in values.values() if v.ndim == 2] + [fused[:, i : i + 16] for i in (0, 16, 32)]
    biases = np.concatenate([v for name, v in values.items() if name.endswith("bias")])
    weights = np.concatenate([m.reshape(-1) for m in matrices])
    singular = [np.linalg.svd(m, compute_uv=False) for m in matrices]
    square = [m for m in matrices if m.shape[0] == m.shape[1]]
    ours = {
        "l1": np.mean([np.abs(m).sum() for m in matrices]),
        "l2": np.mean([np.sqrt((m**2).sum()) for m in matrices]),
        "trace": np.mean([np.trace(m) for m in square]),
        "spectral": np.mean([np.linalg.norm(m, 2) for m in matrices]),
        "code_sparsity": np.mean([np.abs(m).sum() / np.sqrt((m**2).sum()) for m in matrices]),
        "computational_sparsity": np.mean([np.trace(m) / np.linalg.norm(m, 2) for m in square]),
        "mean_singular_value": np.mean([s.mean() for s in singular]),
        "variance_singular_value": np.mean([s.var() for s in singular]),
        "mean_weight": weights.mean(),
        "variance_weight": weights.var(),
        "mean_bias": biases.mean(),
        "variance_bias": biases.var(),
    }
    theirs = weight_statistics(model)
    assert tuple(theirs) == COLUMNS and len(square) == 4
    assert {name: theirs[name] for name in ours} == pytest.approx(ours, rel=1e-9, abs=1e-12)
    for name, all_values in (("median_weight", weights), ("median_bias", biases)):
        middle = np.sort(all_values)[[(len(all_values) - 1) // 2, len(all_values) // 2]]
        assert middle[0] <= theirs[name] <= middle[1]


# -- what is written -----------------------------------------------------------------------------------------


def test_what_is_written_loads_with_the_same_logits_and_says_what_it_is(whole, tmp_path):
    card = shipped.write(Small(), whole, seed=3, target=tmp_path / "small")
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert {"README.md", "card.json", "training.json", "model.safetensors", "tokenizer.json"} <= names
    model = wb.load_model(tmp_path / "small", device="cpu")
    ids = model.encode("12+34=")
    assert ids == [0, *Small().ids(["12", "+", "34", "="])] and model.tokenizer.decode(ids[1:]) == "12 + 34 ="
    with torch.no_grad():
        assert torch.equal(model.logits("12+34="), whole.model(input_ids=torch.tensor([ids])).logits)
    assert card.figures == Small().evaluate(whole.model, full=True)
    told = json.loads((tmp_path / "small" / "card.json").read_text())
    assert (told["name"], told["seed"], told["steps"], told["n_layers"]) == ("addition", 3, 30, 2)
    assert told["bytes"] == (tmp_path / "small" / "model.safetensors").stat().st_size
    assert told["n_parameters"] == sum(p.numel() for p in model.hf.parameters())
    curve = json.loads((tmp_path / "small" / "training.json").read_text())
    assert curve["early_losses"] == pytest.approx(whole.curve.early_losses, rel=1e-6)
    readme = (tmp_path / "small" / "README.md").read_text()
    assert f"| accuracy | {card.figures['accuracy']:.4g} |" in readme and "Seed 3; 30 steps" in readme


def test_stored_in_bfloat16_the_figures_are_those_of_the_stored_weights(whole, tmp_path):
    class Half(Small):
        stored_as = torch.bfloat16

        def evaluate(self, model, *, full=False):
            return {"accuracy": model.get_input_embeddings().weight.double().sum().item(), "n": 1}

    trained = replace(whole, model=copy.deepcopy(whole.model))
    card = shipped.write(Half(), trained, seed=3, target=tmp_path / "half")
    model = wb.load_model(tmp_path / "half", device="cpu")
    assert model.dtype is torch.bfloat16 and card.dtype == "bfloat16"
    assert card.figures == Half().evaluate(model.hf) != Half().evaluate(whole.model)


def test_the_sites_of_a_model_that_reads_three_tokens_only_can_be_listed():
    model = wb.load_model((SmallModular().build(0), word_tokenizer(SmallModular().words())))
    assert model.context_length == 3 and "blocks.0.hook_attn_out" in model.sites()
    assert wb.collect(model, ["4 5 ="])["blocks.0.hook_resid_post"].shape[-1] == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [("12+340=", "the word '340', which .* does not know"), ("1 + x =", "'x'"), ("sTART", "'sTART'")],
)
def test_a_word_the_model_does_not_know_is_an_error(text, message):
    tokenizer = word_tokenizer(Small().words(), symbols=Small.symbols, start=Small.start)
    with pytest.raises(Exception, match="UNK"):
        tokenizer(text)
    model = wb.load_model((Small().build(0), tokenizer))
    with pytest.raises(PromptError, match=message):
        model.encode(text)
    assert model.encode("<start> 12-34=") == model.encode("12 - 34 =")


def test_a_minus_is_a_sign_after_a_number_and_part_of_a_word_elsewhere():
    tokenizer = word_tokenizer(Small().words(), symbols=Small.symbols, start=Small.start)
    assert tokenizer.tokenize("12-34=-22") == ["12", "-", "34", "=", "-22"]
    assert tokenizer("1 - 2 =")["input_ids"] == tokenizer("1-2=")["input_ids"]


@pytest.mark.parametrize(
    ("words", "start", "message"),
    [
        (["a", "b", "a"], None, "'a' occurs twice"),
        (["a b"], None, "empty or holds a space"),
        (["a"], "s", "start word 's'"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(words, start, message):
    with pytest.raises(DataError, match=message):
        word_tokenizer(words, start=start)


def test_the_rate_of_a_plan_with_cycles_and_a_cool_down():
    plan = Plan(steps=2200, cycles=2, cool_down=200, learning_rate=1.0, warmup=100)
    same = Plan(steps=1000, learning_rate=1.0, warmup=100)
    rates = [plan.rate(step) for step in range(plan.steps)]
    assert rates[:1000] == rates[1000:2000] == [same.rate(step) for step in range(1000)]
    assert max(rates) == pytest.approx(1.0, abs=1e-3) and rates[1999] == pytest.approx(0.1, abs=1e-3)
    cooling = np.diff(rates[2000:])
    assert np.allclose(cooling, cooling[0]) and cooling[0] < 0 < rates[-1] < 0.001
