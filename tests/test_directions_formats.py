"""Foreign files: GGUF control vectors, safetensors and JSON by layer; and what is refused."""

from __future__ import annotations

import io
import json
import zipfile
from contextlib import suppress

import gguf
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from workbench.directions import Direction, DirectionSet, read, read_gguf, write, write_gguf
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel

SITE = "blocks.{}.hook_resid_post"


def gguf_file(path, rows: dict[int, np.ndarray], *, architecture: str = "controlvector", other: str = ""):
    """A control vector as repeng writes it, by the gguf package alone."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(rows))
    for layer, row in rows.items():
        writer.add_tensor(other or f"direction.{layer}", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(path) -> dict[str, np.ndarray]:
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}


def rows(n: int = 3, d: int = 48, unit: bool = False, seed: int = 0) -> dict[int, np.ndarray]:
    drawn = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    if unit:
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return dict(enumerate(drawn, 1))


def natural(d: Direction) -> np.ndarray:
    return (d.scale * d.vector.double()).numpy()


def test_a_control_vector_becomes_a_direction_at_the_output_of_each_block(tmp_path):
    given_rows = rows()
    found = read_gguf(gguf_file(tmp_path / "happy.gguf", given_rows))
    assert found.sites == [SITE.format(i) for i in (1, 2, 3)] and found.name == "happy"
    assert found.settings["model_hint"] == "llama" and found.settings["zero_layers"] == []
    for (layer, row), d in zip(given_rows.items(), found, strict=True):
        np.testing.assert_allclose(natural(d), row, rtol=3e-7)
        assert np.isclose(d.scale, np.linalg.norm(row.astype(float))) and d.settings["layer"] == layer


def test_direction_n_is_added_to_the_output_of_block_n_counted_from_0(tmp_path):
    """As repeng does it: a hook on `layers[N]`. (llama.cpp adds tensor N at the end of block il = N.)"""
    model = LanguageModel(tiny.hf_model("llama"), tiny.tokenizer(), name="tiny")
    given_rows = rows(2)
    found = read_gguf(gguf_file(tmp_path / "c.gguf", given_rows))
    found.fits(model)
    ids = torch.tensor([model.encode("Mary went to the store")])
    handles = [
        model.hf.model.layers[n].register_forward_hook(
            lambda _m, _i, out, row=row: out + torch.from_numpy(row)
        )
        for n, row in given_rows.items()
    ]
    with torch.no_grad():
        expected = model.hf(ids).logits
    for handle in handles:
        handle.remove()
    edits = {d.site: (lambda x, d=d: x + d.scale * d.vector) for d in found}
    with model.edit(edits):
        ours = model.logits([ids[0].tolist()])
    assert torch.allclose(ours, expected, atol=1e-4)


def test_unit_vectors_come_back_bit_for_bit_and_others_to_the_last_digit(tmp_path):
    for unit in (True, False):
        given_rows = rows(20, unit=unit)
        if unit:  # norms as float32 leaves them: a few 1e-7 beside 1
            given_rows = {n: (r * (1 + 2e-8 * n)).astype(np.float32) for n, r in given_rows.items()}
        found = read_gguf(gguf_file(tmp_path / "a.gguf", given_rows))
        back = tensors_of(write_gguf(found, tmp_path / "b.gguf"))
        for layer, row in given_rows.items():
            if unit:
                here = found[SITE.format(layer)]
                assert back[f"direction.{layer}"].tobytes() == row.tobytes() == here.vector.numpy().tobytes()
                assert here.scale == 1.0
            else:
                np.testing.assert_array_max_ulp(back[f"direction.{layer}"], row, maxulp=1)
        again = read_gguf(tmp_path / "b.gguf")
        assert again.name == found.name and again[0].source == found[0].source


def test_what_we_write_has_the_keys_and_types_other_programs_read(tmp_path):
    model_set = DirectionSet(
        [
            Direction.from_vector(torch.randn(8), site=SITE.format(i), name="x", model_fingerprint="f")
            for i in (4, 2)
        ]
    )
    path = write_gguf(model_set, tmp_path / "x.gguf", model_hint="qwen3")
    reader = gguf.GGUFReader(path)
    text = lambda key: reader.get_field(key).contents()  # noqa: E731
    assert text("general.architecture") == "controlvector" and text("controlvector.model_hint") == "qwen3"
    assert text("controlvector.layer_count") == 2
    assert [t.name for t in reader.tensors] == ["direction.2", "direction.4"]
    assert all(t.tensor_type.name == "F32" and list(t.shape) == [8] for t in reader.tensors)
    back = read_gguf(path)
    assert back[0].model_fingerprint == "f" and back.name == "x"
    assert read_gguf(path, name="y", model_fingerprint="g")[0].model_fingerprint == "g"


def test_layers_without_anything_are_left_out_and_named(tmp_path):
    given_rows = rows(4)
    given_rows[2] = np.zeros(48, np.float32)
    found = read(gguf_file(tmp_path / "z.gguf", given_rows))
    assert isinstance(found, DirectionSet) and found.settings["zero_layers"] == [2] and len(found) == 3
    assert "direction.2" not in tensors_of(write_gguf(found, tmp_path / "w.gguf"))
    with pytest.raises(DataError, match="All 1 vectors .* are zero"):
        read(gguf_file(tmp_path / "all.gguf", {1: np.zeros(48, np.float32)}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: gguf_file(p, rows(), architecture="llama"), "architecture 'llama', not a control vector"),
        (lambda p: gguf_file(p, {1: rows()[1]}, other="token_embd.weight"), "tensor 'token_embd.weight'"),
        (lambda p: gguf_file(p, {1: rows()[1].astype(np.float16)}), "direction.1 .* is F16"),
        (lambda p: gguf_file(p, {1: np.ones((2, 4), np.float32)}), r"direction.1 .* of shape \[4, 2\]"),
        (lambda p: gguf_file(p, {1: rows()[1], 2: np.ones(7, np.float32)}), "one width"),
        (lambda p: gguf_file(p, {1: np.full(4, np.nan, np.float32)}), "4 of 4 components .*NaN"),
        (lambda p: gguf_file(p, {}), "holds no directions"),
        (lambda p: p.write_bytes(b"GGUF" + b"\xff" * 40), "damaged"),
        (
            lambda p: p.write_bytes(gguf_file(p, rows()).read_bytes().replace(b"llama", b"\xff" * 5)),
            "model_hint.*damaged",
        ),
    ],
)
def test_gguf_files_that_are_no_control_vector_are_refused(tmp_path, make, message):
    path = tmp_path / "bad.gguf"
    make(path)
    with pytest.raises(DataError, match=message):
        read(path)


@pytest.mark.parametrize("keep", [4, 20, 100, 300])
def test_a_gguf_file_cut_short_is_refused(tmp_path, keep):
    path = gguf_file(tmp_path / "c.gguf", rows())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="damaged|no directions"):
        read(path)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_a_gguf_file_with_wrong_bytes_is_an_error_of_ours_or_still_a_set(tmp_path_factory, seed, n):
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.unlink(missing_ok=True)
    data = bytearray(gguf_file(path, rows(2, 8)).read_bytes())
    draw = np.random.default_rng(seed)
    header = data.index(b"direction.1")  # most of them there, where a reader can stumble
    for at in draw.integers(0, header + 60 if seed % 4 else len(data), n):
        data[at] = draw.integers(0, 256)
    path.write_bytes(data)
    with suppress(DataError):
        read_gguf(path)


def test_what_a_control_vector_cannot_hold_is_not_written(tmp_path):
    make = lambda site, name="x": Direction.from_vector(torch.ones(4), site=site, name=name)  # noqa: E731
    for members, message in (
        ([make(SITE.format(0))], "block 0: llama.cpp refuses"),
        ([make("blocks.3.hook_mlp_out")], "block outputs only"),
        ([make(SITE.format(1)), make(SITE.format(1), "y")], "one direction a layer"),
    ):
        with pytest.raises(DataError, match=message):
            write(members, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


# --- by layer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["{}", "layer.{}", "layer_{}", "direction.{}", "blocks.{}.hook_resid_post"])
def test_safetensors_by_layer_are_read_under_any_of_their_usual_keys(tmp_path, key):
    given_rows = rows()
    save_file({key.format(n): torch.from_numpy(r) for n, r in given_rows.items()}, tmp_path / "v.safetensors")
    found = read(tmp_path / "v.safetensors")
    assert isinstance(found, DirectionSet) and found.sites == [SITE.format(n) for n in (1, 2, 3)]
    for row, d in zip(given_rows.values(), found, strict=True):
        np.testing.assert_allclose(natural(d), row, rtol=3e-7)


@pytest.mark.parametrize(
    ("layer_type", "part"),
    [("decoder_block", "hook_resid_post"), ("self_attn", "hook_attn_out"), ("mlp", "hook_mlp_out")],
)
def test_json_as_steering_vectors_has_it(tmp_path, layer_type, part):
    path = tmp_path / "v.json"
    path.write_text(
        json.dumps({"layer_type": layer_type, "layer_activations": {"0": [3, 4.0], "7": [0.0, 1]}})
    )
    found = read(path)
    assert isinstance(found, DirectionSet) and found.sites == [f"blocks.0.{part}", f"blocks.7.{part}"]
    assert found[0].scale == 5.0 and found[1].scale == 1.0
    path.write_text(json.dumps({"0": [3, 4.0]}))
    assert read(path, layer_type=layer_type).sites == [f"blocks.0.{part}"]  # type: ignore[union-attr]


@pytest.mark.parametrize("ending", ["gguf", "safetensors", "json"])
def test_every_format_we_write_is_read_again(tmp_path, ending):
    several = [
        Direction.from_vector(torch.randn(6), site=SITE.format(i), name="n", scale=1.7) for i in (1, 5)
    ]
    found = read(write(several, tmp_path / f"f.{ending}"))
    assert isinstance(found, DirectionSet) and found.name == "n" and found.sites == [d.site for d in several]
    for a, b in zip(several, found, strict=True):
        np.testing.assert_allclose(natural(a), natural(b), rtol=3e-7)
    with pytest.raises(DataError, match="ends in '.bin'"):
        write(several, tmp_path / "f.bin")


def test_our_own_files_are_read_whole(tmp_path):
    d = Direction.from_vector(torch.randn(6), site=SITE.format(1), name="n", settings={"a": 1})
    assert torch.equal(read(d.save(tmp_path / "d")).vector, d.vector)  # type: ignore[union-attr]
    both = DirectionSet([d, d.at(SITE.format(2))])
    assert len(read(both.save(tmp_path / "s"))) == 2  # type: ignore[arg-type]


def test_pickles_are_refused_unopened_with_the_way_to_convert_them(tmp_path):
    torch.save({1: torch.ones(3)}, tmp_path / "v.pt")
    torch.save({1: torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("x", "y")
    (tmp_path / "disguised.safetensors").write_bytes(buffer.getvalue())
    for name in ("v.pt", "old.pt", "disguised.safetensors"):
        with pytest.raises(DataError, match="pickle.*save_file.*layer_activations"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no format that is known"),
        (b"hello world, this is text", "no format that is known"),
        (b'{"1": [1, 2', "not JSON or is damaged"),
        (b'{"1": ["a"]}', "not a list of numbers"),
        (b'{"one": [1, 2]}', "names no layer"),
        (b'{"1": [[1, 2]]}', "not a vector"),
        (b'{"1": [1, 2], "layer.1": [1, 2]}', "two vectors for layer 1"),
        (b'{"1": [1, 2], "2": [1]}', "one width"),
        (b'{"1": [0, 0]}', "All 1 vectors"),
        (b'{"1": [NaN, 1]}', "NaN or infinite"),
        (b"{}", "holds no directions"),
        (
            b'{"layer_type": "input_layernorm", "layer_activations": {"1": [1]}}',
            "no additive site.*decoder_block",
        ),
        (b'{"1": [1, 2], "blocks.2.hook_mlp_out": [1, 2]}', "mixes kinds of sites"),
        (b'{"-1": [1, 2]}', "names no layer"),
    ],
)
def test_what_is_not_vectors_by_layer_is_refused(tmp_path, content, message):
    path = tmp_path / "v.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_missing_file_and_a_folder_are_one_error(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize("begin", [b"\x80", b"PK", b" \n"])
def test_a_safetensors_file_is_known_whatever_its_length_looks_like(tmp_path, begin):
    """The first bytes of a safetensors file are the length of its header: of 32 files one begins as a pickle does."""
    file, vector = tmp_path / "d.safetensors", torch.ones(4)

    def written(note):
        direction = Direction.from_vector(vector, site="blocks.0.hook_resid_post", settings={"note": note})
        return int.from_bytes(direction.save(file).read_bytes()[:8], "little")

    wanted = int.from_bytes(begin, "little")
    written("x" * ((wanted - written("")) % 256 ** len(begin)))
    assert file.read_bytes()[: len(begin)] == begin
    found = read(file)
    assert isinstance(found, Direction) and torch.equal(found.vector, vector / 2)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError):
        read(file)
