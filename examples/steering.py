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
# # Directions and steering: push a model, and see what it costs
#
# Three ways to make a direction for good and bad reviews, what they have in common, what they do to text, and at what
# price. Random directions of the same length go through every measurement.
#
# Open it as a notebook with `jupytext --to notebook steering.py`, or run it as a script.

# %%
import tempfile
from dataclasses import replace

import probes
import workbench as wb

model = wb.load_model("smollm2-135m")
site = "blocks.16.hook_resid_post"
prompts = [
    "I watched the film yesterday. It was",
    "We ate at the new restaurant. The food was",
    "She finished the novel last week. It was",
    "They stayed at the hotel for a night. The room was",
]
model

# %% [markdown]
# ## Mean difference
# Where good and bad reviews differ on average, at the last token. Half of the reviews make a direction and the other
# half tests it, and the other way round; `control_auc` is the same with the labels shuffled.

# %%
reviews = wb.datasets.load("sentiment").filter(template="was")
good, bad = reviews.filter(label="positive"), reviews.filter(label="negative")
n = 24
good, bad = good.texts[:n], bad.texts[:n]
print(good[0], "|", bad[0])
mean = wb.steering.mean_difference(model, good, bad, site, name="mean difference")
quality = mean.settings["held_out"]
{key: round(quality[key], 3) for key in ("auc", "auc_low", "auc_high", "control_auc", "control_auc_high")}

# %% [markdown]
# ## In-context vector
# The principal axis of the differences of pairs, through several layers at once. `parts="pca"` takes the axis alone:
# with the mean added, as in the paper's code, the result is all but the mean difference. It is a set with one
# direction a layer; what follows looks at one of them.

# %%
vectors = wb.steering.extract.in_context_vector(
    model, good, bad, layers=[12, 14, 16, 18], parts="pca", apply_at="resid_post"
)
print(vectors)
in_context = vectors[site]
quality = in_context.settings["held_out"]
{key: round(quality[key], 3) for key in ("auc", "auc_low", "auc_high", "control_auc", "control_auc_high")}

# %% [markdown]
# ## Weight of a probe
# A logistic probe of the same reviews. Its weight says what tells them apart *given all else*, which is not where
# they differ most. Pairs stay together in its folds and in those of the shuffled labels.

# %%
acts = wb.collect(model, good + bad, sites=site, positions=-1)
pair = [*range(n), *range(n)]
sweep = probes.sweep(acts, ["good"] * n + ["bad"] * n, kinds=["logistic"], groups=pair, positive="good")
weight = replace(sweep.direction(), name="probe weight")
sweep.summary["best"]

# %% [markdown]
# ## How they lie to each other
# Random directions in so many dimensions are all but orthogonal; the summary says how large a cosine may be by chance,
# for one pair (`band`) and for the largest of all (`band_of_all`). To be beyond it is no great feat here,
# since all three come from the same reviews.

# %%
several = wb.directions.DirectionSet([mean, in_context, weight])
cosines = several.cosines()
cosines.summary

# %%
cosines.plot()

# %% [markdown]
# ## Which tokens does it promote?
# A table of tokens always shows something, so the k-th token of random directions stands beside the k-th of this one.
# `direct` is the usual table of vector times unembedding; `network` lets the later blocks run, which is what happens.
# The p-values say how often a random direction's first token moves at least as far: where they are large, the tokens
# do not say what the direction means.

# %%
tokens = wb.directions.top_tokens(model, mean, k=8, prompts=prompts)
tokens.data["p_value"].to_pandas()

# %%
tokens.plot()

# %% [markdown]
# ## Keep them
# A library is a folder. Without a path it is your own, which the command line and the dashboard see as well.

# %%
shelf = wb.directions.library(tempfile.mkdtemp())
shelf.save("good reviews", mean, tags=["sentiment"])
shelf.save("good reviews, in context", vectors, tags=["sentiment"])
same = shelf.direction("good reviews")
print([entry.name for entry in shelf.search("sentiment")], bool((same.vector == mean.vector).all()))

# %% [markdown]
# ## Steering: the same tokens with and without cache
# Steering goes by a token's position in the text, so the cache of keys and values changes the time and nothing else.

# %%
push = wb.steering.Steering(mean, mean.strength(1.5), where="generated")
cached = wb.steering.generate(model, prompts[:2], push, max_new_tokens=12)
plain = wb.steering.generate(model, prompts[:2], push, max_new_tokens=12, use_cache=False)
print("equal:", cached.tokens == plain.tokens)
cached.texts

# %% [markdown]
# ## Where
# All tokens, those of the prompt, those that are generated, or everything from a word on; beside no steering at all.

# %%
rules = {
    "all": "all",
    "prompt": "prompt",
    "generated": "generated",
    "from 'film'": wb.steering.From(text="film"),
}
text = prompts[0]
print(f"{'unsteered':>12}", wb.steering.generate(model, text, max_new_tokens=12).texts[0])
for name, rule in rules.items():
    said = wb.steering.generate(model, text, mean, mean.strength(1.5), where=rule, max_new_tokens=12)
    print(f"{name:>12}", said.texts[0])

# %% [markdown]
# ## When
# A schedule multiplies the strength by step: full at the prompt, gone after eight tokens. A condition steers only
# where a probe fires. Here the probe is the direction itself, asked once at the prompt's last token: the dreadful film
# is pushed. The lovely one is the control: it is left alone, and its text is that of the unsteered model.

# %%
fading = wb.steering.Steering(mean, mean.strength(2), schedule=wb.steering.CosineDown(steps=8))
print("fading", wb.steering.generate(model, text, fading, max_new_tokens=12).texts[0])

# %%
both = ["The film was lovely. I felt", "The film was dreadful. I felt"]
read = wb.collect(model, both, sites=site, positions=-1)
coefficients = mean.project(read).flatten().tolist()
only_bad = wb.steering.Condition(mean, threshold=sum(coefficients) / 2, fires="below", holds="last")
steered = wb.steering.generate(model, both, mean, mean.strength(2), condition=only_bad, max_new_tokens=12)
untouched = wb.steering.generate(model, both, max_new_tokens=12)
for i, prompt in enumerate(both):
    print(f"{prompt!r}, coefficient {coefficients[i]:.2f}")
    print("   unsteered  ", untouched.texts[i])
    print("   conditional", steered.texts[i])

# %% [markdown]
# ## Eight strengths, one generation
# Rows of a batch may carry different strengths, so a whole range costs little more than one. Strength 0 is the
# unsteered model, and the control for what is said at all others. A stronger push is not more of the same: far out
# the words no longer mean what they meant.

# %%
strengths = [mean.strength(x) for x in (-4, -2, -1, 0, 1, 2, 4, 8)]
ladder = wb.steering.sweep_strengths(model, prompts[:2], mean, strengths, max_new_tokens=12)
for strength in strengths:
    print(f"{strength:+6.1f}", ladder.at(strength)[1])

# %% [markdown]
# ## What it does, and what it costs
# The score is the logit of "good" minus that of "bad". Random directions of equal length are the control, and only
# the difference from them counts. The unsteered model reads the texts back: where their perplexity doubles or they
# repeat themselves, quality breaks. Random directions break it, too: if as soon, it is the length that breaks it.

# %%
doses = wb.steering.dose_response(
    model,
    prompts,
    mean,
    [mean.strength(x) for x in (-4, -2, 2, 4)],
    wb.LogitDifference(" good", " bad"),
    n_random=3,
    show_text=10,
)
doses.plot()

# %%
doses.data[["break_strength", "break_low", "break_high"]].to_dataframe()

# %% [markdown]
# ## Strengths at equal cost
# Directions of equal length move a model by different amounts. `iso_kl` finds the strength at which each changes the
# next token by the same KL, on two prompts; the other two judge. Random directions show what that KL buys without a
# meaning: a method should be beyond all of them. Two prompts are few; `wb.steering.measure.compare_methods` does the
# same with tasks, held-out prompts and intervals.

# %%
chosen_on, judged_on = prompts[:2], prompts[2:]
random = {f"random {seed}": wb.Direction.random(mean, seed=seed) for seed in range(4)}
candidates = {"mean difference": mean, "probe weight": weight, **random}
calibrated = wb.steering.measure.iso_kl(
    model, chosen_on, None, list(candidates.values()), target=0.5, new_tokens=10
)
difference = wb.LogitDifference(" good", " bad").resolve(model)
last = [n - 1 for n in model.batch(judged_on).lengths]


def score(strength, direction):
    batch = model.batch(judged_on)
    with wb.steering.Steering(direction, strength).on(model, batch):
        logits = model.forward(batch).logits
    return float(difference(logits[range(len(last)), last]).mean())


unsteered = score(0.0, mean)
for (name, direction), found in zip(candidates.items(), calibrated, strict=True):
    change = score(found.strength, direction) - unsteered
    print(f"{name:>15}: strength {found.strength:5.1f}, KL {found.kl:.2f}, good - bad {change:+.2f} logits")

# %% [markdown]
# ## A vector that writes a given sentence
# The search asks which one vector, added at every token, makes the frozen model write this sentence. It finds one
# soon, which says how much room there is, not that the model "has" the sentence. Without a vector, and with a random
# one of the same length, it writes something else: 100 is the sentence itself, and their BLEU stands beside it.

# %%
sentence = "The old lighthouse keeper sang to the gulls."
written = wb.steering.extract.z_steer(model, sentence, layer=12, prefix="<|im_start|>assistant\n", steps=40)
vector = written.directions[0]
said = wb.steering.generate(
    model, [list(written.prefix)], vector, vector.scale, where=written.where, max_new_tokens=12
)
print(repr(said.texts[0]))
{key: written.result.summary[key] for key in ("bleu", "bleu_no_z", "bleu_random_z", "median_steps")}

# %%
written.result.plot()
