"""What steering costs while generating, what strengths cost as rows of one batch, and whether a cache changes anything.

1. Tokens a second of steered cached generation (`wb.steering.generate`, one prompt, every position steered) over
   transformers' own `generate` without any hook. Goal: `steered_over_plain` >= 0.95.
2. Eight strengths as rows of one generation over eight generations. Goal: `batched_strengths_gain` >= 3.
3. Rules, a schedule and a condition, greedy and sampled, on left-padded prompts: share of rows whose tokens are the
   same with and without KV cache. Goal: `cache_on_off_equal` = 1.
4. Peers beside it: the time of a steered generation, and whether it says the same with and without cache, for steering
   every position and for steering those after the prompt.

float32 on all sides; greedy unless stated. Where time is taken no end-of-sequence token is chosen, so that all generate
the same number of tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

import workbench as wb
from benchmarks import steering_peers as peers
from benchmarks.common import Goal, Report, alternate, machine, main
from workbench.directions import Direction
from workbench.steering import Condition, CosineDown, From, Steering, generate, sweep_strengths

PROMPT = "I watched the film yesterday. It was"
PROMPTS = [PROMPT, "The food was", "She went to the concert on Friday. The band and the audience were"]
LAYER = 14
STRENGTHS = [-40.0, -20.0, -10.0, -5.0, 5.0, 10.0, 20.0, 40.0]


def run(
    repeats: int = 7,
    new_tokens: int = 32,
    batches: int = 2,
    peer_repeats: int = 2,
    model: str = "smollm2-135m",
) -> Report:
    """All four parts: `repeats` pairs of single generations, `batches` of the eight strengths."""
    lm = wb.load_model(model, dtype="float32")
    vector = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    d = Direction.from_vector(vector, site=f"blocks.{LAYER}.hook_resid_post", name="random")
    report = Report(
        settings={
            **machine(),
            "model": model,
            "dtype": "float32",
            "prompt tokens": len(lm.encode(PROMPT)),
            "new tokens": new_tokens,
            "repeats": repeats,
            "not installed": ", ".join(peers.not_installed()) or "none",
        }
    )
    plain = _plain(lm, new_tokens)
    _cost(lm, d, plain, repeats, new_tokens, report)
    _batched(lm, d, batches, new_tokens // 2, report)
    _cache(lm, d, report)
    _peers(lm, d, plain, peer_repeats, new_tokens, report)
    return report


def _plain(lm: wb.LanguageModel, new: int) -> Callable[[], list[int]]:
    """transformers' own generation of one prompt."""
    ids = lm.batch(PROMPT).ids

    @torch.inference_mode()
    def go() -> list[int]:
        out = lm.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        return out[0, ids.shape[1] :].tolist()

    return go


def _cost(lm: Any, d: Direction, plain: Any, repeats: int, new: int, report: Report) -> None:
    def steered(strength: float = 10.0, where: Any = "all") -> list[int]:
        said = generate(lm, PROMPT, d, strength, where=where, max_new_tokens=new, stop_at_end=False)
        return list(said.tokens[0])

    agree = steered(0.0) == plain()
    timing = alternate({"plain": plain, "steered": steered}, repeats=repeats)
    speed = [1 / ratio for ratio in timing.ratios("steered", "plain")]
    per_second = {side: round(new / timing.median(side), 1) for side in ("plain", "steered")}
    report.rows.append(
        {"side": "transformers' generate", "tokens/s": per_second["plain"], "what": "no hooks"}
    )
    report.rows.append(
        timing.row(
            "steered", "plain", what="one site, every position", **{"tokens/s": per_second["steered"]},
            strength_0_says_the_same=agree,
        )
    )  # fmt: skip
    report.goals.append(Goal.at_least("steered_over_plain", round(statistics.median(speed), 4), 0.95))


def _batched(lm: Any, d: Direction, batches: int, new: int, report: Report) -> None:
    said: dict[str, list[tuple[int, ...]]] = {}
    options = {"max_new_tokens": new, "stop_at_end": False}

    def together() -> None:
        said["batch"] = [rows[0] for rows in sweep_strengths(lm, PROMPT, d, STRENGTHS, **options).tokens]

    def one_by_one() -> None:
        said["runs"] = [generate(lm, PROMPT, d, s, **options).tokens[0] for s in STRENGTHS]

    timing = alternate({"8 runs": one_by_one, "one batch": together}, repeats=batches, warm_up=0)
    equal = sum(a == b for a, b in zip(said["batch"], said["runs"], strict=True))
    row = timing.row(
        "8 runs", "one batch", what=f"8 strengths, {new} tokens each", rows_equal=f"{equal} of 8"
    )
    report.rows.append(row)
    gain = statistics.median(timing.ratios("8 runs", "one batch"))
    report.goals.append(Goal.at_least("batched_strengths_gain", round(gain, 3), 3))


def _cache(lm: Any, d: Direction, report: Report) -> None:
    probe = Direction.from_vector(d.vector.flip(0), site="blocks.8.hook_resid_post", name="probe")
    cases: dict[str, dict[str, Any]] = {
        "all": {"where": "all"},
        "prompt": {"where": "prompt"},
        "generated": {"where": "generated"},
        "last": {"where": "last"},
        "from a text": {"where": From(text=" was")},
        "schedule": {"schedule": CosineDown(6, 0.2)},
        "condition": {"condition": Condition(probe, 0.0)},
        "generated, sampled": {"where": "generated", "sampling": {"temperature": 1.0, "top_p": 0.95}},
    }
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[2].replace(" were", " was")]
    equal = total = 0
    for case, how in cases.items():
        sampling = how.pop("sampling", {})
        steering = Steering(d, 40.0, **how)
        said = [
            generate(lm, prompts, steering, max_new_tokens=6, use_cache=cache, **sampling).tokens
            for cache in (True, False)
        ]
        same = sum(a == b for a, b in zip(*said, strict=True))
        report.rows.append(
            {"side": case, "what": "cache on and off", "rows_equal": f"{same} of {len(prompts)}"}
        )
        equal, total = equal + same, total + len(prompts)
    report.goals.append(Goal.at_least("cache_on_off_equal", round(equal / total, 4), 1))


def _peers(lm: Any, d: Direction, plain: Any, repeats: int, new: int, report: Report) -> None:
    ids, added = lm.batch(PROMPT).ids, 40.0 * d.vector
    known = {
        "TransformerBridge": peers.transformer_bridge(lm, LAYER),
        "nnsight": peers.nnsight(lm, LAYER),
    }
    ours = {
        rule: list(generate(lm, PROMPT, d, 40.0, where=rule, max_new_tokens=8, stop_at_end=False).tokens[0])
        for rule in ("all", "generated")
    }
    for name, go in known.items():
        if go is None:
            report.rows.append({"side": name, "what": "not installed"})
            continue
        says = {
            rule: [go(ids, added, rule == "all", 8, cache) for cache in (True, False)]
            for rule in ("all", "generated")
        }
        sides = {"plain": plain, name: lambda go=go: go(ids, added, True, new, True)}
        timing = alternate(sides, repeats=repeats, warm_up=0)
        report.rows.append(
            timing.row(
                name,
                "plain",
                what="one site, every position",
                cache_on_off_equal={rule: on == off for rule, (on, off) in says.items()},
                without_cache_equal_to_ours={rule: off == ours[rule] for rule, (_, off) in says.items()},
                **{"tokens/s": round(new / timing.median(name), 1)},
            )
        )


if __name__ == "__main__":
    main(run, __doc__ or "", repeats=5, new_tokens=24, batches=2, peer_repeats=1, model="smollm2-135m")
