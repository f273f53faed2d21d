"""The organisms' tasks: reproducible batches with right targets, pairs that differ only where they say, clean splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from organism_oracles import (
    chain_values,
    expected,
    is_held_out,
    looped_path,
    maze_parts,
    maze_words,
    othello_after,
)

from workbench import datasets, organisms
from workbench.errors import DataError, ModelError
from workbench.organisms.organism import IGNORE, Organism, Plan
from workbench.organisms.tokenizer import word_tokenizer

NAMES = organisms.names()
WITHOUT_LIKELY = [name for name in NAMES if name != "othello-6x6"]
N = 24


@pytest.fixture(scope="module", params=NAMES)
def organism(request) -> Organism:
    return organisms.get(request.param)


def tokenizer_of(organism: Organism):
    return word_tokenizer(organism.words(), symbols=organism.symbols, start=organism.start)


def split_words(organism: Organism, text: str) -> list[str]:
    """The words of a prompt as the tokenizer reads them, without the start word."""
    tokenizer = tokenizer_of(organism)
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def rows_of(organism: Organism, seed: int, step: int, n: int) -> list[list[str]]:
    """Words of the last rows of a batch, without the start word; padding at the end may be left."""
    vocabulary = organism.words()
    ids = organism.batch(seed, step).ids[-n:].tolist()
    skip = 0 if organism.start is None else 1
    assert skip == 0 or all(vocabulary[row[0]] == organism.start for row in ids)
    return [[vocabulary[i] for i in row[skip:]] for row in ids]


def facts_of(organism: Organism) -> np.ndarray | None:
    return getattr(organism, "facts", None)


def test_words_are_unique_and_as_many_as_the_model_has(organism):
    words = organism.words()
    assert len(set(words)) == len(words) == organism.config().vocab_size
    assert tokenizer_of(organism).convert_tokens_to_ids(words) == list(range(len(words)))


def test_a_batch_is_that_of_its_seed_and_step_and_of_no_other(organism):
    one, same = organism.batch(3, 8), organisms.get(organism.name).batch(3, 8)
    assert torch.equal(one.ids, same.ids) and torch.equal(one.targets, same.targets)
    assert one.ids.dtype == one.targets.dtype == torch.int64 and one.ids.shape == one.targets.shape
    assert one.likely is None or torch.equal(one.likely, same.likely)
    for other in (organism.batch(3, 9), organism.batch(4, 8)):
        assert one.ids.shape != other.ids.shape or not torch.equal(one.ids, other.ids)
    assert len(one.ids) == organism.plan.batch_size
    assert one.ids.shape[1] <= organism.config().max_position_embeddings
    assert (one.targets != IGNORE).any(1).all()


@pytest.mark.parametrize("name", WITHOUT_LIKELY)
def test_every_target_of_a_batch_is_the_right_next_word(name):
    organism = organisms.get(name)
    skip = 0 if organism.start is None else 1
    step = 2 if name != "looped" else next(i for i in range(100) if organism.loops_at(i) == 8)  # whole paths
    batch, vocabulary = organism.batch(0, step), organism.words()
    checked = 0
    for ids, targets in zip(batch.ids[-12:].tolist(), batch.targets[-12:].tolist(), strict=True):
        for place in [i for i, target in enumerate(targets) if target != IGNORE]:
            words = [vocabulary[i] for i in ids[skip : place + 1]]
            if words[-1] != ".":  # the end of a trace: nothing follows
                assert expected(name, words, facts_of(organism)) == {vocabulary[targets[place]]}
                checked += 1
    assert checked >= 12


def test_the_looped_organism_is_taught_one_step_more_with_every_loop():
    organism = organisms.get("looped")
    vocabulary, seen = organism.words(), set()
    for step in range(30):
        loops = organism.loops_at(step)
        seen.add(loops)
        batch = organism.batch(0, step)
        for ids, targets in zip(batch.ids[:4].tolist(), batch.targets[:4].tolist(), strict=True):
            for place in [i for i, target in enumerate(targets) if target != IGNORE]:
                path = looped_path([vocabulary[i] for i in ids[1 : place + 1]])
                assert vocabulary[targets[place]] == path[min(loops + 1, len(path) - 1)]
    assert seen == set(range(1, 9))


def test_othellos_targets_spread_evenly_over_the_legal_moves():
    organism = organisms.get("othello-6x6")
    batch, vocabulary = organism.batch(0, 2), organism.words()
    for row, words in enumerate(rows_of(organism, 0, 2, 6), start=len(batch.ids) - 6):
        for place in range(32):
            if batch.targets[row, place] != IGNORE:
                likely = batch.likely[row, place]
                assert {vocabulary[i] for i in likely.nonzero()[:, 0].tolist()} == expected(
                    organism.name, words[:place]
                )
                assert likely.sum().item() == pytest.approx(1) and likely.unique().numel() == 2


@pytest.mark.parametrize("split", ["held_out", "train"])
def test_pairs_differ_only_where_they_say_and_have_right_one_token_answers(organism, split):
    tokenizer, pairs = tokenizer_of(organism), organism.problems(N, split=split, seed=2)
    assert len(pairs) == N and len({pair.clean for pair in pairs.records}) >= N - 2
    for pair in pairs.records:
        clean, corrupt = (tokenizer(t, return_offsets_mapping=True) for t in (pair.clean, pair.corrupt))
        assert len(clean["input_ids"]) == len(corrupt["input_ids"])
        places = [
            i
            for i, ids in enumerate(zip(clean["input_ids"], corrupt["input_ids"], strict=True))
            if ids[0] != ids[1]
        ]
        said = [pair.spans[name] for name in pair.extra["differs"]]
        touched = set()
        for place in places:
            begin, end = clean["offset_mapping"][place]
            inside = [span for span in said if span[0] <= begin < end <= span[1]]
            assert len(inside) == 1, (pair.clean, pair.corrupt, pair.clean[begin:end])
            touched.add(inside[0])
        assert touched == set(said), (pair.clean, pair.corrupt, pair.extra["differs"])
        answer, wrong = (
            tokenizer.tokenize(t, add_special_tokens=False) for t in (pair.answer, pair.wrong_answer)
        )
        assert len(answer) == len(wrong) == 1
        right = expected(organism.name, split_words(organism, pair.clean), facts_of(organism))
        right_corrupt = expected(organism.name, split_words(organism, pair.corrupt), facts_of(organism))
        assert answer[0] in right - right_corrupt and wrong[0] in right_corrupt - right
        assert pair.answer == f" {answer[0]}"


def test_spans_hold_whole_words(organism):
    for pair in organism.problems(8).records:
        assert pair.spans and set(pair.extra["differs"]) <= set(pair.spans)
        for begin, end in pair.spans.values():
            around = (pair.clean[begin - 1 : begin], pair.clean[end : end + 1])
            assert pair.clean[begin:end].strip() == pair.clean[begin:end] != "" and set(around) <= {"", " "}


@pytest.mark.parametrize("name", WITHOUT_LIKELY)  # of othello's games a pair holds a part only: see below
def test_held_out_pairs_are_held_out_and_training_pairs_are_not(name):
    organism = organisms.get(name)
    for split in ("held_out", "train"):
        for pair in organism.problems(N, split=split, seed=5).records:
            held_out = is_held_out(organism.name, split_words(organism, pair.clean), organism)
            assert held_out == (split == "held_out"), pair.clean


def test_training_batches_hold_nothing_that_is_held_out(organism):
    for step in (0, 5):
        for words in rows_of(organism, organism.trained_with, step, 40):
            if organism.name == "othello-6x6":
                words = words[: words.index("<game>")] if "<game>" in words else words
                words += sorted(othello_after(words).legal() and expected(organism.name, words))
            if organism.name == "two-hop":
                words = words[: words.index(":") + 1]
            assert not is_held_out(organism.name, words, organism), words


def test_othellos_held_out_games_are_held_out_and_about_one_in_sixteen():
    from workbench.organisms.othello_rules import random_games
    from workbench.organisms.tasks.othello import held_out

    organism = organisms.get("othello-6x6")
    assert held_out(organism.held_out_games(50).moves).all()
    assert 0.03 < held_out(random_games(1500, np.random.default_rng(0)).moves).mean() < 0.1


def test_additions_held_out_part_takes_both_orders_and_both_operations():
    organism = organisms.get("addition")
    held, trained = (set(map(tuple, organism.pairs(s).tolist())) for s in ("held_out", "train"))
    assert not held & trained and len(held) + len(trained) == 20_000
    assert all((b, a, 1 - operation) in held for a, b, operation in held)
    assert 0.1 < len(held) / 20_000 < 0.15


def test_modular_additions_split_follows_the_trainings_seed():
    organism = organisms.get("modular-addition")
    parts = {
        s: [set(map(tuple, organism.pairs(seed, s).tolist())) for seed in (0, 1)]
        for s in ("train", "held_out")
    }
    for seed in (0, 1):
        assert not parts["train"][seed] & parts["held_out"][seed]
        assert len(parts["train"][seed]) + len(parts["held_out"][seed]) == 113**2
    assert parts["train"][0] != parts["train"][1]
    organism.trained_with = 1
    pairs = {(p.extra["a"], p.extra["b"]) for p in organism.problems(60).records}
    assert pairs <= parts["held_out"][1] and not pairs <= parts["held_out"][0]


def test_two_hops_single_facts_are_all_trained_on_and_answer_the_compositions():
    organism = organisms.get("two-hop")
    prompts, answers = organism.encode_single()
    vocabulary = organism.words()
    table = {
        tuple(vocabulary[i] for i in p[1:3]): vocabulary[a] for p, a in zip(prompts, answers, strict=True)
    }
    assert len(table) == 1000
    for pair in organism.problems(40).records:
        entity, first, second, _ = pair.clean.split()
        assert table[entity, first] == pair.extra["bridge"]
        assert table[table[entity, first], second] == pair.answer.strip()
        assert table[tuple(pair.corrupt.split()[:2])] == pair.extra["corrupt_bridge"] != pair.extra["bridge"]


def test_extra_labels_of_the_pairs_are_those_of_the_oracles():
    for pair in organisms.get("mazes-5x5").problems(12).records:
        words = pair.clean.split()
        assert [*pair.extra["path"], "<PATH_END>"] == maze_words(words)
        assert [*pair.extra["corrupt_path"], "<PATH_END>"] == maze_words(pair.corrupt.split())
        assert len(pair.extra["open"]) == maze_parts(words)[0].number_of_edges()
    for pair in organisms.get("chains").problems(12).records:
        values, asked = chain_values(pair.clean.split())
        assert (pair.extra["values"], pair.extra["asked"]) == (values, asked)
    for pair in organisms.get("looped").problems(12).records:
        assert pair.extra["path"] == looped_path(pair.clean.split())
        assert pair.extra["distance"] == len(pair.extra["path"]) - 1
    for pair in organisms.get("othello-6x6").problems(12).records:
        game = othello_after(pair.clean.split())
        names = [f"{'abcdef'[s % 6]}{s // 6 + 1}" for s in range(36)]
        for colour in ("black", "white"):
            held = [n for n, there in zip(names, game.squares(colour[0]), strict=True) if there]
            assert pair.extra[colour] == held
            assert pair.extra["mine" if pair.extra["to_move"] == colour else "yours"] == held
        assert pair.extra["to_move"][0] == game.to_move


# -- through datasets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_datasets_gives_the_organisms_problems_by_split(name):
    organism = organisms.get(name)
    for split, ours in (("train", "train"), ("test", "held_out"), (None, "held_out")):
        given_set = datasets.load(name, split=split, limit=6, seed=3)
        assert given_set.fingerprint == organism.problems(6, split=ours, seed=3).fingerprint
        assert given_set.name == name and given_set.licence == "Apache-2.0"
    assert datasets.load(name, limit=6, seed=4).fingerprint != given_set.fingerprint
    assert name in datasets.generated()


def test_unknown_names_list_near_ones():
    with pytest.raises(DataError, match="Did you mean 'mazes-5x5'"):
        datasets.load("maze-5x5")
    with pytest.raises(ModelError, match="Did you mean 'two-hop'"):
        organisms.get("twohop")


def test_the_learning_rate_rises_and_falls_as_the_plan_says():
    cosine, constant = Plan(steps=110, warmup=10), Plan(steps=110, warmup=10, decay="constant")
    assert [cosine.rate(0), cosine.rate(9)] == pytest.approx([1e-4, 1e-3])
    assert [cosine.rate(60), cosine.rate(110)] == pytest.approx([5.5e-4, 1e-4])
    assert [constant.rate(9), constant.rate(109)] == pytest.approx([1e-3, 1e-3])
