"""Loading: every tensor consumed, every parameter filled, or an error that names both; damaged files never crash."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from stepper import Stepper, allocate, load_model

from hotstart.config.model import read_model_config
from hotstart.errors import CheckpointError
from hotstart.kernels.backends import ops_for
from hotstart.layers.moe import SparseMoE
from hotstart.models import build_model, stream
from hotstart.models.weights import fill_random, load_weights

INDEX = "model.safetensors.index.json"


def build(folder: Path):
    return build_model(read_model_config(folder), ops_for("torch"), torch.float32, torch.float32, 64)


def refuse_to_allocate(shape, dtype):
    raise AssertionError("memory was taken before the headers were checked")


@pytest.fixture
def copy_of(checkpoint, tmp_path):
    """A family's checkpoint to spoil."""

    def copy(name: str) -> Path:
        return shutil.copytree(checkpoint(name), tmp_path / name)

    return copy


def rewrite(folder: Path, **tensors) -> None:
    """Replace tensors of a single-file checkpoint, where `__` stands for a dot; None removes."""
    path = folder / "model.safetensors"
    held = load_file(path) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in held.items() if tensor is not None}, path)


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as info:
        load_weights(build(folder), folder, refuse_to_allocate)
    return str(info.value)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_parameter_is_filled(family, checkpoint):
    model = build(checkpoint(family.name))
    seen: list[tuple[int, int]] = []
    load_weights(model, checkpoint(family.name), allocate, lambda done, total: seen.append((done, total)))
    padding = 0
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
    for layer in model.layers:
        if not layer.has_attention:
            dims = layer.linear_attn.dims
            used = dims.a_offset + dims.num_value_heads
            padding += (dims.packed_width - used) * model.config.hidden_size
            assert not layer.linear_attn.in_proj.weight[used:].any()
        if isinstance(layer.mlp, SparseMoE):
            behind = layer.mlp.gate.weight[layer.mlp.dims.num_experts + 1 :]
            padding += behind.numel()
            assert not behind.any()
    assert sum(p.numel() for p in model.parameters()) == model.config.num_parameters + padding
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 2 * model.config.num_parameters - 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_streamed_weights_are_the_same(family, checkpoint, monkeypatch):
    """As a GPU gets them: in pieces, by several threads."""
    monkeypatch.setattr(stream, "PIECE_BYTES", 1000)
    monkeypatch.setattr(stream, "AHEAD_BYTES", 5000)
    monkeypatch.setattr(stream, "CAST_BYTES", 600)
    folder, seen = checkpoint(family.name), []
    mapped, streamed = build(folder), build(folder)
    load_weights(mapped, folder, allocate)
    load_weights(streamed, folder, allocate, lambda done, total: seen.append((done, total)), torch.device("cpu"))
    assert seen[-1][0] == seen[-1][1] and len(seen) > 10
    for (name, one), other in zip(mapped.named_parameters(), streamed.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_of_tensors_put_together_apart_few_are_under_way(checkpoint, monkeypatch):
    """They take memory of the GPU beside the weights: with no room for two, one is finished before the next comes."""
    monkeypatch.setattr(stream, "APART_BYTES", 0)
    folder, apart, most = checkpoint("next"), [], []
    destination, landed = stream._destination, stream._landed

    def begun(tensor, piece, device):
        apart.extend([tensor.name] if piece.plain is None else [])
        most.append(len(apart))
        return destination(tensor, piece, device)

    def ended(coming):
        apart[:] = [name for name in apart if name != coming.tensor.name]
        return landed(coming)

    monkeypatch.setattr(stream, "_destination", begun)
    monkeypatch.setattr(stream, "_landed", ended)
    load_weights(build(folder), folder, allocate, stream_to=torch.device("cpu"))
    assert max(most) == 1 and not apart


def test_a_file_that_ends_early_is_told_while_it_is_streamed(copy_of):
    folder = copy_of("dense-tied")
    model, path = build(folder), folder / "model.safetensors"
    size = path.stat().st_size

    def cut_then_allocate(shape, dtype):
        os.truncate(path, size // 2)
        return torch.empty(shape, dtype=dtype)

    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged .* bytes too early"):
        load_weights(model, folder, cut_then_allocate, stream_to=torch.device("cpu"))


def test_what_is_left_for_later_is_skipped(copy_of, caplog_hotstart):
    folder = copy_of("moe-per-expert")
    rewrite(folder, mtp__fc__weight=torch.ones(1), model__visual__x=torch.ones(2, dtype=torch.int8))
    load_weights(build(folder), folder, allocate)
    messages = [record.getMessage() for record in caplog_hotstart.records]
    assert any("vision" in m for m in messages)
    assert any("multi-token prediction" in m for m in messages)


def test_a_text_checkpoint_with_the_multimodal_prefix(copy_of):
    folder = copy_of("dense-tied")
    path = folder / "model.safetensors"
    renamed = {name.replace("model.", "model.language_model.", 1): t for name, t in load_file(path).items()}
    save_file(renamed, path)
    load_weights(build(folder), folder, allocate)
    save_file(renamed | {"model.norm.weight": renamed["model.language_model.norm.weight"].clone()}, path)
    assert "holds norm.weight twice" in refused(folder)


def test_an_error_lists_what_is_missing_unused_and_unfit(copy_of):
    folder = copy_of("moe-per-expert")
    rewrite(
        folder,
        model__norm__weight=None,
        model__layers__0__linear_attn__in_proj_z__weight=None,
        model__layers__1__mlp__experts__2__up_proj__weight=None,
        model__layers__9__mlp__gate__weight=torch.ones(1),
        model__layers__0__mlp__experts__gate_up_proj=torch.ones(1),
        model__embed_tokens__weight=torch.ones(211, 57),
        model__layers__3__self_attn__o_proj__weight=torch.ones(56, 80, dtype=torch.int32),
    )
    message = refused(folder)
    names = "layers.0.linear_attn.in_proj_z.weight, layers.1.mlp.experts.2.up_proj.weight, norm.weight"
    assert f"3 missing: {names};" in message
    assert "2 that Qwen3_5MoeForCausalLM does not use: model.layers.0.mlp.experts.gate_up_proj, model.l" in message
    assert "model.embed_tokens.weight has shape [211, 57], expected [211, 56]" in message
    assert "o_proj.weight has dtype I32, expected BF16, F16 or F32" in message


def test_tied_and_untied_heads(copy_of):
    untied = copy_of("moe-per-expert")
    rewrite(untied, lm_head__weight=None)
    assert "config.json must say tie_word_embeddings: true" in refused(untied)
    tied = copy_of("dense-tied")
    embedding = load_file(tied / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tied, lm_head__weight=embedding.clone())
    load_weights(build(tied), tied, allocate)
    rewrite(tied, lm_head__weight=embedding + 1)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embedding"):
        load_weights(build(tied), tied, allocate)


def test_folders_without_safetensors(copy_of):
    folder = copy_of("dense-tied")
    (folder / "model.safetensors").unlink()
    assert "holds neither model.safetensors nor" in refused(folder)
    (folder / "model.Q4.gguf").touch()
    assert "GGUF" in refused(folder)
    (folder / "pytorch_model.bin").touch()
    assert "pickle files, which can run code" in refused(folder)


def test_a_lying_index(copy_of, caplog_hotstart):
    folder = copy_of("next")
    index = json.loads((folder / INDEX).read_text())
    files = index["weight_map"]

    def told(weight_map) -> str:
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        return refused(folder)

    assert "missing: norm.weight" in told({k: v for k, v in files.items() if k != "model.norm.weight"})
    assert "does not name" in caplog_hotstart.text
    assert "1 tensors are not in the files" in told(files | {"model.x": files["model.norm.weight"]})
    assert "does not exist, but the index names it" in told(files | {"model.x": "model-9.safetensors"})
    for outside in ("../secret.safetensors", "/etc/passwd"):
        assert "expected one in the same folder" in told(files | {"model.x": outside})
    for text in ("[]", "{}", '{"weight_map": 3}', "", "[" * 100_000):
        (folder / INDEX).write_text(text)
        assert "is not a safetensors index" in refused(folder)


def test_damaged_files_are_refused(copy_of):
    """A file cut anywhere, a header that lies: an error of ours, or the file happens to be whole."""
    folder = copy_of("dense-tied")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    name = "model.norm.weight"
    first, last = header[name]["data_offsets"]

    def with_header(**entry) -> bytes:
        text = json.dumps(header | {name: header[name] | entry}).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + size :]

    spoilt = [
        b"",
        whole[:4],
        whole[:200],
        whole[:-1],
        whole + b"\0",
        struct.pack("<Q", 2**63) + whole[8:],
        struct.pack("<Q", size - 1) + whole[8:],
        with_header(data_offsets=[first, last + 2]),
        with_header(data_offsets=[last, first]),
        with_header(data_offsets=[2**60, 2**60 + last - first]),
        with_header(shape=[10**12]),
        with_header(shape=[-72]),
        with_header(dtype="F99"),
        with_header(shape=[36], dtype="F32"),  # as many bytes
        with_header(shape=[72], dtype="I16"),
    ]
    for content in spoilt:
        path.write_bytes(content)
        assert str(folder) in refused(folder)
    model = build(folder)
    random = torch.Generator().manual_seed(0)
    for _ in range(100):
        content = bytearray(whole)
        for at in torch.randint(8 + size, (2,), generator=random).tolist():
            content[at] = int(torch.randint(256, (), generator=random))
        path.write_bytes(content)
        try:
            load_weights(model, folder, allocate)
        except CheckpointError as error:
            assert str(folder) in str(error)


@pytest.mark.parametrize("name", ["dense-tied", "moe-stacked"])
def test_random_weights_from_a_config_alone(name, checkpoint):
    model, same, other = (build(checkpoint(name)) for _ in range(3))
    for one, seed in ((model, 1), (same, 1), (other, 2)):
        fill_random(one, seed, allocate)
    for (key, a), b, c in zip(model.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
        assert a.std() == 0 or not torch.equal(a, c), key
    (logits,) = Stepper(model, [[3, 1, 4, 1, 5, 9]]).step([6])
    assert 0.1 < logits.std() < 10


def test_bfloat16_keeps_the_small_gates_in_float32(checkpoint):
    model = load_model(checkpoint("dense-tied"), torch.bfloat16)
    kept = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {"A_log", "dt_bias", "norm_weight"}
    stored = load_file(checkpoint("dense-tied") / "model.safetensors")["model.layers.0.linear_attn.A_log"]
    assert stored.dtype == torch.float32
    assert torch.equal(model.layers[0].linear_attn.A_log, stored)
