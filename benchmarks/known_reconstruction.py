"""z_steer on smollm2-135m: does one vector make the frozen model write a sentence it was not tuned on?

Layer and learning rate are chosen on 5 sentences. The others, a third each from three shipped sets and of 5 to 15
tokens, are then reconstructed with that one setting; greedy generation must write them. Beside it: no z, a random z of
the same norm, the z of another sentence; how alike restarts are; longer sentences; and what a prefix of the
beginning-of-sequence token alone gives (position 0 is an attention sink, see `workbench.steering.extract.z_steer`). All
in float32.
"""

from __future__ import annotations

import random
import re
import time
from typing import Any

from benchmarks.common import Goal, Report, machine, main

PREFIX = "<|im_start|>assistant\n"
LAYERS = (8, 12, 16, 20, 24)
RATES = (0.5, 1.0)
N_TUNING = 5
TUNING_STEPS = 30


def run(sentences: int = 60, long: int = 20, restarts: int = 2, seed: int = 0, threads: int = 2) -> Report:
    """Tune on 5 sentences, reconstruct the rest."""
    import torch

    import workbench as wb
    from workbench.steering.extract.z_steer import z_steer

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    started = time.perf_counter()
    model = wb.load_model("smollm2-135m", device="cpu", dtype="float32")
    drawn, longer = _sentences(model, sentences + N_TUNING, long, seed)
    tuning, held_out = drawn[:N_TUNING], drawn[N_TUNING:]
    report = Report(
        settings={
            **machine(),
            "threads": threads,
            "model": "smollm2-135m, float32",
            "prefix": PREFIX,
            "where": "all",
            "tuned on": N_TUNING,
            "seed": seed,
        }
    )

    tried = []
    for layer in LAYERS:
        for rate in RATES:
            how: dict[str, Any] = {"steps": TUNING_STEPS, "schedule": "constant", "seed": seed}
            found = z_steer(model, tuning, layer, prefix=PREFIX, learning_rate=rate, **how)
            data = found.result.data
            tried.append((-int(data["exact"].values.sum()), int(data["steps"].values.sum()), layer, rate))
    missed, steps, layer, rate = min(tried)  # all of them, then the fewest steps, then the lowest layer
    tuned = time.perf_counter()
    chosen = {"layer": layer, "learning rate": rate, "exact": -missed, "of": N_TUNING, "steps": steps}
    report.rows.append(
        {"what": f"best of {len(tried)} settings", **chosen, "seconds": round(tuned - started, 1)}
    )

    def reconstruct(what: str, texts: list[str], prefix: str | None = PREFIX, **more: Any) -> Any:
        began = time.perf_counter()
        made = z_steer(model, texts, layer, prefix=prefix, learning_rate=rate, seed=seed, **more).result
        report.rows.append(_row(what, made.summary, made.data, time.perf_counter() - began))
        return made

    held = reconstruct(f"held-out sentences, best of {restarts}", held_out, restarts=restarts, init=1.0)
    summary, first = held.summary, held.data.isel(restart=0)
    controls = [name.removeprefix("corpus_bleu_") for name in summary if name.startswith("corpus_bleu_")]
    report.rows += [
        {
            "what": "first restart alone",
            "n": len(held_out),
            "exact": round(float(first["exact"].mean()), 4),
            "BLEU >= 95": round(float((first["bleu"] >= 95).mean()), 4),
        },
        {"what": "BLEU of the corpus", **{name: summary[f"corpus_bleu_{name}"] for name in controls}},
        {"what": "mean BLEU of sentences, smoothed", **{name: summary[f"bleu_{name}"] for name in controls}},
    ]
    if "restart_cosine" in summary:
        cosines = {"mean": summary["restart_cosine"], "of random vectors": summary["random_cosine"]}
        report.rows.append({"what": "cosine between restarts", **cosines})
    if longer:
        reconstruct("sentences of 16 to 40 tokens", longer)
    reconstruct("prefix of one token, 60 steps", held_out[:10], prefix=None, steps=60)
    report.settings["seconds"] = round(time.perf_counter() - started, 1)
    report.goals = [
        Goal.at_least("sentences_not_tuned_on", len(held_out), 20),
        Goal.at_least("share_with_bleu_95", round(summary["bleu_at_least_95"]["share"], 4), 0.95),
        Goal.at_least("share_exact", round(summary["exact"]["share"], 4), 0.95),
        Goal.at_least("corpus_bleu", summary["corpus_bleu"], 95),
        Goal.at_most("highest_control_bleu", max(summary[f"bleu_{name}"] for name in controls), 20),
        Goal.at_most("argmax_right_but_not_written", summary["solved_but_not_written"], 0),
        Goal.at_most("seconds", report.settings["seconds"], 360),
    ]
    torch.set_num_threads(before)
    return report


def _row(what: str, summary: dict[str, Any], data: Any, seconds: float) -> dict[str, Any]:
    tokens = data["n_tokens"].values
    exact, bleu = summary["exact"], summary["bleu_at_least_95"]
    return {
        "what": what,
        "n": summary["n"],
        "tokens": f"{tokens.min()}–{tokens.max()}",
        "exact": round(exact["share"], 4),
        "exact 95 %": f"{exact['low']:.3f}–{exact['high']:.3f}",
        "BLEU >= 95": round(bleu["share"], 4),
        "BLEU >= 95, 95 %": f"{bleu['low']:.3f}–{bleu['high']:.3f}",
        "corpus BLEU": summary["corpus_bleu"],
        "median steps": summary["median_steps"],
        "seconds": round(seconds, 1),
    }


def _sentences(model: Any, n: int, n_long: int, seed: int) -> tuple[list[str], list[str]]:
    """`n` sentences of 5 to 15 tokens, shuffled, a third from each set; and `n_long` of 16 to 40 from plain text."""
    import workbench as wb

    draw = random.Random(seed)
    plain = [s for text in wb.datasets.load("plain-text").texts for s in re.split(r"(?<=[.?!]) ", text)]
    sources = [list(wb.datasets.load("sentiment").texts), list(wb.datasets.load("capitals").texts), plain]
    short: list[str] = []
    long: list[str] = []
    for i, texts in enumerate(sources):
        unique = list(dict.fromkeys(texts))
        draw.shuffle(unique)
        sized = [(text, len(model.encode(text))) for text in unique[: 40 * max(n, n_long)] if text.strip()]
        short += [text for text, size in sized if 5 <= size <= 15][: (n + i) // 3]
        if texts is plain:
            long = [text for text, size in sized if 16 <= size <= 40][:n_long]
    draw.shuffle(short)
    return short, long


if __name__ == "__main__":
    main(run, __doc__ or "", sentences=60, long=20, restarts=2, seed=0, threads=2)
