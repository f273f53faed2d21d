"""Claims on steering, judged by the intervals of `benchmarks.steering_results` alone.

Verdicts: "holds", "holds in kind", "does not hold", "cannot be tested at this size".
"""

from __future__ import annotations

from typing import Any

import numpy as np

METHODS = ("mean difference", "PCA of differences", "probe weight")


def claims(data: Any, dose: Any) -> list[dict[str, Any]]:
    """What papers say of steering, and whether it holds here. Verdicts follow from intervals alone."""
    found = []
    every = {str(t): data.sel({"task": t, "method": list(METHODS)}) for t in data["task"].values}

    def wins(task: str) -> str:
        at = every[task]
        parts = [
            f"{m}: {with_interval(at.sel({'method': m}), 'mean_against_random', 'against_random')}"
            + (" above" if bool(at["beats_random"].sel({"method": m})) else "")
            for m in METHODS
        ]
        return f"{task} (above random, n {int(at['n'].max())}): " + "; ".join(parts)

    sources = {
        "sentiment": "a difference of means moves the sentiment of what is written (2308.10248, 2312.06681)",
        "formality": "a direction from styled pairs changes style (2311.06668)",
        "language": "a direction from translations changes the language of what is written",
    }
    for task, words in sources.items():
        if task in every:
            found.append(_claim(words, _verdict(every[task]), wins(task)))
    asked = [t for t in every if t.startswith("answer in")]
    if asked:
        got = [_verdict(every[t]) for t in asked]
        verdict = (
            "holds"
            if all(g == "holds" for g in got)
            else "does not hold"
            if set(got) == {"does not hold"}
            else "holds in kind"
        )
        words = (
            "the difference of prompts with and without an instruction makes the model follow it (2410.12877)"
        )
        found.append(_claim(words, verdict, ". ".join(wins(t) for t in asked)))
        found.append(_in_context(data, asked))
    found.append(_best_method(every))
    if dose is not None:
        found.append(_break_claim(dose))
    words = "steering leaves what else the model can do as it was (MMLU and the like)"
    numbers = (
        "The model answers too few such questions to lose any; perplexity and KL stand in the table instead."
    )
    found.append(_claim(words, "cannot be tested at this size", numbers))
    return found


def _claim(words: str, verdict: str, numbers: str) -> dict[str, Any]:
    return {"table": "claims", "claim": words, "verdict": verdict, "numbers": numbers}


def _verdict(at: Any) -> str:
    """`holds`: all methods lie above random and above the unsteered model; `holds in kind`: some do."""
    good = at["beats_random"].values & (at["change_low"].values > 0)
    return "holds" if good.all() else "holds in kind" if good.any() else "does not hold"


def _in_context(data: Any, asked: list[str]) -> dict[str, Any]:
    parts, better = [], []
    for task in asked:
        prompt = data.sel({"task": task, "method": "in-context prompt"})
        best = max(
            METHODS,
            key=lambda m: np.nan_to_num(
                float(data["mean_change"].sel({"task": task, "method": m})), nan=-9e9
            ),
        )
        at = data.sel({"task": task, "method": best})
        better.append(float(at["change_low"]) > float(prompt["change_high"]))
        asked_for = (
            f"asked {with_interval(prompt, 'mean_change', 'change')} at KL {short(prompt['kl_along'])}"
        )
        parts.append(
            f"{task}: {asked_for}, {best} {with_interval(at, 'mean_change', 'change')} at KL {short(at['kl_along'])}"
        )
    verdict = "holds" if all(better) else "holds in kind" if any(better) else "does not hold"
    words = "steering makes the model follow an instruction better than stating it does (intervals apart)"
    return _claim(words, verdict, "; ".join(parts))


def _best_method(every: dict[str, Any]) -> dict[str, Any]:
    """Paired intervals of mean difference less probe weight, by task."""
    from workbench.steering.measure.resample import interval, nan_mean

    parts, apart = [], 0
    for task, at in every.items():
        difference = (
            at["score"].sel({"method": "mean difference"}).values
            - at["score"].sel({"method": "probe weight"}).values
        )
        low, high = interval(difference, 0)
        apart += bool(low > 0)
        parts.append(f"{task} {short(nan_mean(difference))} [{short(low)}, {short(high)}]")
    verdict = "holds" if apart == len(every) else "holds in kind" if apart else "does not hold"
    words = "a difference of means steers better than a probe's weight (2310.06824)"
    return _claim(words, verdict, "mean difference − probe weight at equal KL: " + "; ".join(parts))


def _break_claim(dose: Any) -> dict[str, Any]:
    at = dose.sel(direction="steered")
    side = str(dose["side"].values[0])
    strength, low, high = (float(at[f"break_{n}"].sel(side=side)) for n in ("strength", "low", "high"))
    mean = at["mean_score"]
    before = mean.where(mean["strength"] <= (strength if np.isfinite(strength) else np.inf))
    gain = float(before.max() - mean.sel(strength=0.0))
    whole = float(mean.max() - mean.sel(strength=0.0))
    words = "an effect can be had before quality breaks (half of the largest change at a strength below the break)"
    verdict = "holds" if gain > 0 and gain >= 0.5 * whole else "does not hold"
    text = f"language breaks at {short(strength)} [{short(low)}, {short(high)}] ({dose.attrs['quality']}); "
    text += f"p(French) gains {short(gain)} before it, {short(whole)} at most"
    return _claim(words, verdict, f"{text}; n {int(dose.sizes['prompt'])}")


def short(value: Any) -> str:
    """Two decimals, a dash for NaN."""
    number = float(value)
    return f"{number + 0.0:.2f}".replace("-0.00", "0.00") if np.isfinite(number) else "–"


def with_interval(at: Any, mean: str, ends: str) -> str:
    """`0.51 [0.20, 0.83]` of one cell."""
    if not np.isfinite(float(at[mean])):
        return "–"
    return f"{short(at[mean])} [{short(at[f'{ends}_low'])}, {short(at[f'{ends}_high'])}]"
