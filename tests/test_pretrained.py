"""Weights that others published: where a word leads, what is read, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from publishing import ALLOWED, CLASSIFIER, SHAPES, checked, lines, made, publish, refused, rewrite, same
from safetensors.torch import load_file, save_file

from dml_runner.config import compose
from dml_runner.engines.pretrained import load_pretrained
from dml_runner.errors import ConfigError
from dml_runner.pretrained import locate, task_for, tokenizer_of

# --- where a word leads --------------------------------------------------------------------------------------------------


def test_a_folder_and_a_file_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = publish(tmp_path / "weights", made(*SHAPES["gpt"]))
    monkeypatch.chdir(tmp_path)
    assert locate("weights") == locate(str(folder)) == folder
    assert locate("weights/model.safetensors") == folder / "model.safetensors"


def test_a_package_is_searched_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    folder = publish(package / "deep" / "model", made(*SHAPES["gpt"]))
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "pooling").mkdir()
    (package / "pooling" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("package:some_weights") == locate("package:some-weights") == folder
    shutil.copytree(folder, package / "second")
    with pytest.raises(ConfigError) as error:
        locate("package:some_weights")
    listed = f"{folder}, {package / 'second'}"
    assert lines(error) == [
        f"model.pretrained: the package has several folders of weights; got package:some_weights; allowed one of them: {listed}"
    ]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("package:no_such", "no such package is installed; got package:no_such; pip install no_such"),
        ("package:../x", "no such package is installed; got package:../x; pip install ../x"),
        ("package:yaml", f"the package has no folder with config.json and .safetensors; got package:yaml; {ALLOWED}"),
        ("./nothing", f"no weights there; got ./nothing; {ALLOWED}"),
        ("a/b/c", f"no weights there; got a/b/c; {ALLOWED}"),
        ("weights.safetensors", f"no weights there; got weights.safetensors; {ALLOWED}"),
        ("a.txt", f"no weights there; got a.txt; {ALLOWED}"),
        ("org/name", f"no folder of this name, and the hub did not give it (LocalEntryNotFoundError); got org/name; {ALLOWED}"),
    ],
)
def test_where_nothing_is_one_line_says_so(word: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "a.txt").touch()
    with pytest.raises(ConfigError) as error:
        locate(word)
    assert lines(error) == [f"model.pretrained: {line}"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_pickles_are_refused_unread(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not even a pickle")
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ConfigError) as error:
            locate(str(path))
        assert lines(error) == [
            f"model.pretrained: holds pickled weights only; they can run code, and are not read; got {path}; allowed safetensors; "
            "let their author, or save_pretrained of transformers, write them as safetensors"
        ]


def test_an_empty_folder_is_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        locate(str(tmp_path))
    assert lines(error) == [f"model.pretrained: holds no .safetensors file and no run; got {tmp_path}; {ALLOWED}"]


def test_the_tokenizer_beside_the_weights_is_the_datas(tmp_path: Path) -> None:
    folder = publish(tmp_path / "weights", made(*SHAPES["gpt"]))
    run = compose([*SHAPES["gpt"], f"model.pretrained={folder}"]).run
    assert task_for(run).tokenizer is None
    (folder / "vocab.txt").touch()
    assert task_for(run).tokenizer == tokenizer_of(folder / "model.safetensors") == str(folder / "vocab.txt")
    (folder / "tokenizer.json").touch()
    assert task_for(run).tokenizer == str(folder / "tokenizer.json")
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    (tmp_path / "run" / "job.yaml").touch()
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-00000001"):
        assert tokenizer_of(path) == str(tmp_path / "run" / "tokenizer")
    gone = compose([*SHAPES["gpt"], f"model.pretrained={tmp_path / 'gone'}"]).run
    assert task_for(gone, tmp_path / "run").tokenizer == str(tmp_path / "run" / "tokenizer")


# --- files that others published -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_published_is_loaded(shape: str, tmp_path: Path) -> None:
    origin = made(*SHAPES[shape])
    model = made(*SHAPES[shape], seed=2)
    folder = publish(tmp_path / "weights", origin)
    assert load_pretrained(model, str(folder)) == ()
    assert same(model, origin, set(origin.state_dict()))
    assert checked(folder, *SHAPES[shape]) == f"weights from {folder}"


@pytest.mark.parametrize(
    ("shape", "head"),
    [("gpt", {"classifier.weight"}), ("bert", {f"{n}.{k}" for n in ("pooler", "classifier") for k in ("weight", "bias")})],
)
def test_a_head_that_is_missing_starts_anew(shape: str, head: set[str], tmp_path: Path) -> None:
    """As it would without weights to start from: drawn by seed and name."""
    origin, model = made(*SHAPES[shape]), made(*SHAPES[shape], *CLASSIFIER, seed=2)
    folder = publish(tmp_path / "weights", origin)
    assert set(load_pretrained(model, str(folder))) == head
    assert same(model, origin, set(model.state_dict()) - head)
    assert same(model, made(*SHAPES[shape], *CLASSIFIER, seed=2), head)
    listed = ", ".join(name for name in model.state_dict() if name in head)
    assert checked(folder, *SHAPES[shape], *CLASSIFIER) == f"weights from {folder}; what they lack starts anew: {listed}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    origin, model = made(*SHAPES["bert"]).to(dtype), made(*SHAPES["bert"], seed=2)
    load_pretrained(model, str(publish(tmp_path / "weights", origin)))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert same(model.to(dtype), origin, set(origin.state_dict()))


def test_quantised_weights_are_refused_and_unused_tensors_are_not(tmp_path: Path) -> None:
    folder = publish(tmp_path / "weights", made(*SHAPES["gpt"]))
    tensors = load_file(folder / "model.safetensors")
    rewrite(folder, tensors | {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.uint8)})
    assert checked(folder, *SHAPES["gpt"]) == f"weights from {folder}"
    name = "transformer.h.1.mlp.c_fc.weight"
    rewrite(folder, tensors | {name: tensors[name].to(torch.int8)})
    line = f"model.pretrained: {name} is quantised, or is no weight; got I8; allowed F64, F32, F16, BF16, I64"
    assert refused(folder, *SHAPES["gpt"]) == [line]
    with pytest.raises(ConfigError) as error:
        load_pretrained(made(*SHAPES["gpt"]), str(folder))
    assert lines(error) == [line]


def test_a_longer_position_table_is_cut(tmp_path: Path) -> None:
    origin, model = made(*SHAPES["gpt"]), made(*SHAPES["gpt"], "model.context=8", seed=2)
    load_pretrained(model, str(publish(tmp_path / "weights", origin)))
    assert torch.equal(model.state_dict()["positions.weight"], origin.state_dict()["positions.weight"][:8])


def shard(folder: Path) -> dict[str, str]:
    """Divide the weights of a folder into two files; returns the map of their index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    place = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(place.values()):
        save_file({name: tensors[name] for name in tensors if place[name] == file}, folder / file)
    index(folder, place)
    return place


def index(folder: Path, place: Any) -> None:
    """Write the index of a folder."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


def test_shards_are_put_together(tmp_path: Path) -> None:
    origin, model = made(*SHAPES["llama"]), made(*SHAPES["llama"], seed=2)
    folder = publish(tmp_path / "weights", origin)
    shard(folder)
    load_pretrained(model, str(folder))
    assert same(model, origin, set(origin.state_dict()))


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "weights", made(*SHAPES["gpt"]))
    place = shard(folder)
    first, file = next(iter(place.items()))
    path = folder / "model.safetensors.index.json"
    outside = "names a file outside its folder, or of another kind"
    for name in ("../model.safetensors", "/etc/passwd", "sub/x.safetensors", "pytorch_model.bin"):
        index(folder, place | {first: name})
        assert refused(folder, *SHAPES["gpt"]) == [f"model.pretrained: {outside}; got {path}: {name!r}"]
    index(folder, place | {"more": file})
    assert refused(folder, *SHAPES["gpt"]) == [
        f"model.pretrained: {file} lacks more; got {folder}; model.safetensors.index.json says it is there"
    ]
    index(folder, place | {"more": "gone.safetensors"})
    assert refused(folder, *SHAPES["gpt"]) == [
        f"model.pretrained: gone.safetensors is missing; got {folder}; model.safetensors.index.json names it"
    ]
    index(folder, [1])
    assert refused(folder, *SHAPES["gpt"]) == [f"model.pretrained: weight_map: an object is expected; got {path}"]
    path.write_text("{")
    assert refused(folder, *SHAPES["gpt"]) == [f"model.pretrained: not JSON; got {path}"]
    path.unlink()
    several = "holds several files, and no model.safetensors.index.json"
    names = ", ".join(sorted(set(place.values())))
    assert refused(folder, *SHAPES["gpt"]) == [f"model.pretrained: {several}; got {folder}: {names}; allowed the path of one of them"]


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "weights", made(*SHAPES["gpt"]))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    (line,) = refused(folder, *SHAPES["gpt"])
    assert line.startswith("model.pretrained: not a whole safetensors file (")
    assert line.endswith(f"got {file}")


# --- weights of another model --------------------------------------------------------------------------------------------


def test_the_words_that_would_fit_are_named(tmp_path: Path) -> None:
    folder = publish(tmp_path / "weights", made(*SHAPES["bert"]))
    said = refused(folder, *SHAPES["bert"], "model.hidden=64", "model.layers=3", "model.heads=2")
    differs = "differs from that of the weights it starts from"
    assert said[:3] == [
        f"model.hidden: {differs}; got 64; set model.hidden=32",
        f"model.layers: {differs}; got 3; set model.layers=2",
        f"model.heads: {differs}; got 2; set model.heads=4",
    ]
    assert said[3] == "model.pretrained: bert.embeddings.word_embeddings.weight has another shape; got 50 x 32; allowed 50 x 64"
    assert len(said) == 3 + 11
    assert said[-1].startswith("model.pretrained: and ")


def test_what_no_shape_shows_is_compared_too(tmp_path: Path) -> None:
    differs = "differs from that of the weights it starts from"
    bert = publish(tmp_path / "bert", made(*SHAPES["bert"]), hidden_act="relu", layer_norm_eps=1e-5)
    assert refused(bert, *SHAPES["bert"], "model.heads=8") == [
        f"model.heads: {differs}; got 8; set model.heads=4",
        "model.pretrained: config.json says hidden_act, in which the model is another; got relu; allowed gelu",
        "model.pretrained: config.json says layer_norm_eps, in which the model is another; got 1e-05; allowed 1e-12",
    ]
    scaled = publish(tmp_path / "scaled", made(*SHAPES["llama"]), rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0})
    assert refused(scaled, *SHAPES["llama"]) == [
        "model.pretrained: config.json scales rotary positions, which the model does not; got llama3; allowed default"
    ]
    slower = publish(tmp_path / "slower", made(*SHAPES["llama"]), rope_theta=500000.0)
    assert refused(slower, *SHAPES["llama"]) == [f"model.rope_theta: {differs}; got 10000.0; set model.rope_theta=500000.0"]
    assert refused(bert, *SHAPES["gpt"]) == [f"model.pretrained: weights of another kind of model; got {bert}: bert; allowed gpt2"]
    same_function = publish(tmp_path / "gpt", made(*SHAPES["gpt"]), activation_function="gelu_pytorch_tanh")
    assert checked(same_function, *SHAPES["gpt"]) == f"weights from {same_function}"


def test_a_shape_that_nobody_publishes_starts_from_runs_only(tmp_path: Path) -> None:
    folder = publish(tmp_path / "weights", made(*SHAPES["gpt"]))
    assert refused(folder, *SHAPES["gpt"], "model.bias=false") == [
        "model.pretrained: nobody publishes weights of such a model; allowed a run folder of ours"
    ]
