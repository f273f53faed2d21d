"""The model card of an organism, as Markdown, and the table of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.organisms.organism import Organism
    from workbench.organisms.shipped import Card
    from workbench.organisms.training import Curve


def readme(organism: Organism, card: Card, curve: Curve) -> str:
    """The card: task, data, architecture, training, accuracy, what is known, how to use it."""
    example = organism.problems(1).records[0]
    plan = organism.plan
    lines = [
        f"# {card.name}",
        "",
        f"{card.summary[0].upper()}{card.summary[1:]}.",
        "",
        "## Task and data",
        "",
        card.task,
        "",
        f"Example: `{example.clean}` is followed by `{(example.answer or '').strip()}`."  # type: ignore[union-attr]
        f" Its counterfactual, `{example.corrupt}`, is followed by `{(example.wrong_answer or '').strip()}`.",  # type: ignore[union-attr]
        "",
        "## Use",
        "",
        "```python",
        "import workbench as wb",
        "",
        f'model = wb.load_model("{card.name}")',
        f'pairs = wb.datasets.load("{card.name}", split="test", limit=100)',
        "```",
        "",
        "## Accuracy on held-out data",
        "",
        "Measured from the weights as they are stored here.",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {_number(value)} |" for name, value in card.figures.items()),
        "",
        *[f"Goal: {goal['metric']} {goal_words(goal)}." for goal in card.goals],
        "",
        "## What is known about it",
        "",
        *(f"- {statement}" for statement in organism.known.statements),
        "",
        *[f"Sources: {'; '.join(organism.known.sources)}.", ""] * bool(organism.known.sources),
        "## Model and training",
        "",
        f"{card.architecture}, {card.n_layers} layers, {card.n_parameters:,} parameters, {card.dtype}, "
        f"{card.bytes / 1e6:.1f} MB. Seed {card.seed}; {card.steps} steps of {plan.batch_size} examples, AdamW, "
        f"learning rate {plan.learning_rate:g} ({plan.decay}), weight decay {plan.weight_decay:g} on matrices, matrix "
        f"products in {plan.precision}. {card.minutes:g} minutes on {card.machine}, torch {card.torch}.",
        "",
        f"Train it again: `workbench models train {card.name} --seed {card.seed}`.",
        "",
        "### Training curve",
        "",
        *_curve_table(curve, organism),
        "",
        f"Licence: {card.licence}. Weights and data were made by this project.",
    ]
    return "\n".join(lines) + "\n"


def table(cards: Sequence[Card]) -> str:
    """The README of `data/models`: one row for each model."""
    lines = [
        "# Model organisms",
        "",
        "Small transformers that were trained for this project, so that what goes on inside is known. Each folder is",
        "an ordinary Hugging Face checkpoint with a word-level tokenizer, a model card (`README.md`), the same for",
        'machines (`card.json`) and its training curve (`training.json`). `wb.load_model("NAME")` loads one,',
        '`wb.datasets.load("NAME")` gives prompt pairs for it, `workbench models train NAME --seed S` trains it anew.',
        "",
        "| name | task | held-out figures | goal | parameters | layers | size | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for card in cards:
        goals = "; ".join(f"{g['metric']} {goal_words(g)}" for g in card.goals) or "none: a comparison"
        lines.append(
            f"| [{card.name}]({card.name}/README.md) | {card.summary} | {headline(card)} | {goals} | "
            f"{card.n_parameters / 1e6:.2f} M | {card.n_layers} | {card.bytes / 1e6:.1f} MB | "
            f"{card.steps} steps, {card.minutes:g} min on {card.machine} |"
        )
    total = sum(card.bytes for card in cards)
    lines += [
        "",
        f"Weights together: {total / 1e6:.1f} MB, without snapshots (modular-addition, two-hop).",
        "",
    ]
    return "\n".join(lines)


def headline(card: Card) -> str:
    """The figure that matters most, with n."""
    metric = card.goals[0]["metric"] if card.goals else next(iter(card.figures))
    return f"{metric} {_number(card.figures[metric])} (n {card.figures.get('n', 0):.0f})"


def goal_words(goal: Mapping[str, Any]) -> str:
    """`at least 0.99`, or a range."""
    most = goal["at_most"]
    return f"at least {goal['at_least']:g}" + (f", at most {most:g} on purpose" if most < 1 else "")


def _curve_table(curve: Curve, organism: Organism) -> list[str]:
    """At most twelve rows, evenly spread and with the last."""
    points = curve.points
    if not points:
        return ["No evaluation was made."]
    metrics = [goal.metric for goal in organism.goals] or ["accuracy"]
    names = ["step", "loss", *metrics]
    stride = max(1, -(-len(points) // 12))
    chosen = points[stride - 1 :: stride]
    if chosen[-1] is not points[-1]:
        chosen.append(points[-1])
    return [
        "| " + " | ".join(names) + " |",
        "|" + "---|" * len(names),
        *("| " + " | ".join(_number(p[name]) for name in names) + " |" for p in chosen),
        "",
        f"{len(chosen)} of {len(points)} evaluations; all are in `training.json`. Loss in nats, mean since the one "
        "before; figures on a sample of the held-out data.",
    ]


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4g}"
