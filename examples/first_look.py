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
# # A first look inside a language model
#
# One real model, untouched, five questions: what does it think layer by layer, where can we read a fact,
# which activations carry the answer, can we push it, and do our pictures survive their controls?
#
# Open it as a notebook with `jupytext --to notebook first_look.py`, or run it as a script.

# %%
import probes
import workbench as wb

model = wb.load_model("smollm2-135m")
model

# %% [markdown]
# ## Names
# A *site* is a place whose tensor can be read or edited. The names are TransformerLens'; globs and lists work.

# %%
print(
    len(model.sites()), "sites, for instance", [s.name for s in model.resolve("blocks.{3,7}.attn.hook_*")][:4]
)

# %% [markdown]
# ## When does the answer appear?
# The logit lens decodes every layer with the model's own readout. Outlined: the layer from which the answer
# stays on top. Random tokens rank in the middle of the vocabulary everywhere; that is the control.

# %%
clean = "When Mary and John went to the store, John gave a drink to"
lens = wb.lens.logit_lens(model, clean, target=" Mary")
lens

# %%
lens.plot()

# %% [markdown]
# ## Read and edit
# Everything above is built on one context manager. Reads change nothing, bit for bit; edits are out of place;
# a hook that does not fire is an error.

# %%
with model.hooks(read="blocks.7.hook_resid_post") as seen:
    plain = model.logits(clean)
print("read", tuple(seen["blocks.7.hook_resid_post"].shape))

with model.edit({"blocks.{20..29}.attn.hook_z": lambda z: z * 0}):
    without_late_heads = model.logits(clean)
answer = wb.LogitDifference(" Mary", " John").resolve(model)
print(
    "logit difference",
    float(answer(plain[:, -1])[0]),
    "without late heads",
    float(answer(without_late_heads[:, -1])[0]),
)

# %% [markdown]
# ## Where can true be told from false?
# A probe per layer on the last token of statements about capitals, with shuffled labels as the control. Each city
# stands once truly and once falsely, and countries that exchange their cities never stand on both sides of a split,
# so knowing names helps nothing.

# %%
facts = wb.datasets.load("capitals").filter(negated=False, template="capital-of", label=["true", "false"])
acts = wb.collect(model, facts.texts, sites="blocks.*.hook_resid_post", positions=-1)
sweep = probes.sweep(acts, facts.labels, kinds=["mass_mean"], groups=facts.groups, positive="true")
sweep.summary

# %%
sweep.plot()

# %% [markdown]
# ## Which activations carry the answer?
# Activations of the clean run are put, cell by cell, into a run in which the other name is repeated.

# %%
corrupt = "When Mary and John went to the store, Mary gave a drink to"
patching = wb.patching.sweep(model, clean, corrupt, wb.LogitDifference(" Mary", " John"), kind="resid_pre")
patching

# %%
patching.plot()

# %% [markdown]
# ## Can it be pushed?
# The mean difference between good and bad reviews, added to other prompts at several strengths, beside random
# directions of the same norm.

# %%
reviews = wb.datasets.load("sentiment")
good, bad = (reviews.filter(label=label).sample(40, seed=0).texts for label in ("positive", "negative"))
direction = wb.steering.mean_difference(model, good, bad, "blocks.16.hook_resid_post")
prompts = ["I watched the film yesterday. It was", "We ate at the new restaurant. The food was"]
doses = wb.steering.dose_response(model, prompts, direction, [-20, 20], wb.LogitDifference(" good", " bad"))
doses

# %%
doses.plot()

# %%
for strength in (-30, 0, 30):
    print(
        f"{strength:+d}",
        wb.steering.generate(model, prompts, direction, strength, max_new_tokens=12).texts[0],
    )
