# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Probing: what can be read off activations, and is it worth believing?
#
# One question, true or false, asked of one small model in nine ways. Each answer stands beside its control; where
# the control does as well, there is no answer.
#
# Open it as a notebook with `jupytext --to notebook probing.py`, or run it as a script.

# %%
import tempfile
from pathlib import Path

import probes
import workbench as wb
from probes.causal import causal_check
from probes.trust import transfer_matrix

model = wb.load_model("smollm2-135m")
folder = Path(tempfile.mkdtemp())
model

# %% [markdown]
# ## Collect
# Statements about capitals, each city once in a true and once in a false one. Countries that exchange their
# cities form a *group*; no group is ever on both sides of a split, so knowing names helps nothing.
# Read is the residual stream at the last token, after every second block.

# %%
facts = wb.datasets.load("capitals").filter(negated=False, template="capital-of", label=["true", "false"])
sites = [f"blocks.{layer}.hook_resid_post" for layer in range(0, model.n_layers, 2)]
acts = wb.collect(model, facts.texts, sites=sites, positions=-1)
print(*facts.texts[:2], len(facts), "statements in", len(set(facts.groups)), "groups")

# %% [markdown]
# ## Sweep
# Two kinds of probe at each of these layers, scored on statements they were not fitted to. Shuffled labels go
# through the same steps. The best of many layers looks better than it is. So beside its `auc` stand `nested_auc`,
# for which the layer was chosen without the statements it is scored on, and `control_best_auc`, the best layer of
# shuffled labels.

# %%
sweep = probes.sweep(acts, facts.labels, groups=facts.groups, positive="true", keep_scores=True)
sweep.summary["best"]

# %%
sweep.plot()

# %% [markdown]
# ## A path of penalties
# The logistic probe was fitted at eight penalties at once. On the left it hardly leaves the prior, on the right it
# fits its training rows: the order of the statements (AUC) barely suffers, but where the held-out log-loss is above
# the dotted line, that of the class shares, its probabilities are worse than none.

# %%
sweep.figures()["penalty"]

# %% [markdown]
# ## Several labels in one solve
# Other labels share the factorisation of the activations. A continent can be told from the country's name alone;
# truth cannot, since every name stands in true and in false statements. Each label has shuffled labels of its own,
# and their band is wider for continents: a group has one truth of each kind, but often one continent only.

# %%
continents = facts.column("continent")
labels = {
    "truth": [label == "true" for label in facts.labels],
    "Africa": [continent == "Africa" for continent in continents],
    "Europe": [continent == "Europe" for continent in continents],
}
several = probes.sweep(acts, labels, kinds=["mass_mean"], groups=facts.groups)
several.plot()

# %% [markdown]
# ## Does it transfer to negated statements?
# Train on plain statements, test on negated ones, and the other way round. Groups are held out of both sets at once.
# An AUC below one half is a direction that says the opposite there: then what was read is not truth, but for
# instance whether country and city go together. Shuffled training labels give the range of chance.

# %%
site = sweep.summary["best"]["site"]
negated = wb.datasets.load("capitals").filter(negated=True, template="capital-of", label=["true", "false"])
negated_acts = wb.collect(model, negated.texts, sites=site, positions=-1)
sets = {
    "plain": (acts.rows(site), facts.labels, facts.groups),
    "negated": (negated_acts, negated.labels, negated.groups),
}
transfer = transfer_matrix(sets, positive="true")
transfer.plot()

# %%
transfer.data[["auc", "auc_low", "auc_high", "control_auc_high"]].sel(probe="mass_mean").to_dataframe().round(
    3
)

# %% [markdown]
# ## Erase it
# LEACE changes activations as little as possible so that no linear probe reads the label from the rows it was fitted
# to: such a probe does as well as the majority (blue). What is left shows a probe that is fitted to rows the eraser
# has not seen (orange). Random directions taken out instead change nothing, so it is not the taking out that hurts.
# `probes.Leace().fit(rows, labels).edit()` is the same as an edit of the running model.

# %%
left = probes.erase_scores(acts.rows(site), facts.labels, groups=facts.groups)
left.plot()

# %% [markdown]
# ## Sets that may say "I cannot tell"
# A third of the groups fits the probe, a third calibrates, a third tests. At `alpha=0.1` the sets hold the
# right answer nine times in ten, over both classes together; the probe pays for it by abstaining. Whatever the
# probe is worth, the coverage should lie in the range that chance allows so many rows, which is printed first.

# %%
fit_on, rest = facts.split(1 / 3, seed=0, by="group")
calibration, test = rest.split(1 / 2, seed=0, by="group")
row_of = {record.id: i for i, record in enumerate(facts)}


def rows(part):
    return acts.rows(site)[[row_of[record.id] for record in part]]


estimator = probes.MassMeanProbe().fit(rows(fit_on), fit_on.labels)
conformal = probes.ConformalSets(alpha=0.1).fit(
    estimator.decision_function(rows(calibration)), calibration.labels
)
table = conformal.table(estimator.decision_function(rows(test)), test.labels, groups=test.groups)
print("coverage expected, 95 %:", [round(end, 3) for end in table.attrs["coverage_expected"]])
table[["n", "coverage", "coverage_low", "coverage_high", "abstention", "accuracy"]].to_dataframe().round(3)

# %% [markdown]
# ## Keep a probe and apply it
# A saved probe knows its site, its model and how it scored, and refuses activations of another place.
# The last two statements are about a made-up country and neither true nor false. The probe answers all the same: it
# knows two classes only.

# %%
on_test = {"accuracy": estimator.score(rows(test), test.labels), "n": len(test)}
fitted = probes.FittedProbe.of(
    estimator, acts, site=site, name="truth of capitals", scores=on_test, training={"n": len(fit_on)}
)
fitted.save(folder / "truth.safetensors")
probe = probes.load_probe(folder / "truth.safetensors")
print(probe.site, probe.model_name, probe.scores)
texts = [
    "The capital of Italy is Rome.",
    "The capital of Italy is Lima.",
    "The capital of Zorvania is Rome.",
    "The capital of Zorvania is Plink.",
]
again = wb.collect(model, texts, sites=probe.site, positions=-1)
for text, chance in zip(texts, probe.predict_proba(again)[:, probe.classes.index("true")], strict=True):
    print(f"{chance:.2f} true  {text}")

# %% [markdown]
# ## Does the model use it?
# The direction is added at the full stop of statements the probe was not fitted to, and the model is asked whether the
# statement is true. Nineteen random directions of the same length do the same. The slope may be far from zero and still
# say little: as long as some random directions push as hard (`random_as_large`, and the `p_value` made of it), we
# have shown that the place matters, and not that the model uses this direction.

# %%
held_out = test.sample(6, seed=0).texts
check = causal_check(
    model,
    [f"{text} This statement is" for text in held_out],
    probe.direction(),
    wb.LogitDifference(" true", " false"),
    position=[[len(model.encode(text)) - 1] for text in held_out],
    strengths=[-4, 4],
    n_random=19,
)
{key: check.summary[key] for key in ("slope", "random_slope", "difference", "random_as_large", "p_value")}

# %%
check.plot()
