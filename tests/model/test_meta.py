"""The whole model without a device: no op reads a value on the host, and every shape follows from the config."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from families import FAMILIES
from stepper import Stepper, load_model
from steps import Row, make_step
from torch.utils._python_dispatch import TorchDispatchMode

from hotstart.cache.tensors import CacheTensors
from hotstart.config.model import read_model_config
from hotstart.errors import ConfigError
from hotstart.kernels.backends import ops_for
from hotstart.models import build_model, resolve_dtype, resolve_state_dtype

MIXED = ([Row(1, 7, 1, 1, (1, 2)), Row(1, 0, -1, 3, (5,))], [Row(70, 0, -1, 2, tuple(range(6, 26)))])


def to_meta(thing):
    if isinstance(thing, torch.Tensor):
        return thing.to("meta")
    return (
        replace(thing, **{f.name: to_meta(getattr(thing, f.name)) for f in fields(thing)})
        if is_dataclass(thing)
        else thing
    )


@pytest.mark.parametrize("spans", [MIXED, (MIXED[0], []), ([], MIXED[1])], ids=["mixed", "decode", "prefill"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_step_on_meta_tensors(family, spans, checkpoint):
    config = read_model_config(checkpoint(family.name))
    model = build_model(config, ops_for("torch"), torch.bfloat16, torch.float32, 128)
    cache = CacheTensors(
        model.layout(page_size=4), 30, 4, lambda shape, dtype: torch.empty(shape, dtype=dtype, device="meta")
    )
    step = to_meta(make_step(*spans, padding=3))
    hidden = model(step, cache)
    assert hidden.shape == (step.num_tokens + 3, config.hidden_size)
    assert model.logits(hidden[:5]).shape == (5, config.vocab_size)
    assert {hidden.device.type, model.logits(hidden).device.type} == {"meta"}


class Operators(TorchDispatchMode):
    """Which operators run on which tensors."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operator, types, args=(), keywords=None):
        tensors = [(*x.shape, *x.stride(), x.dtype) for x in args if isinstance(x, torch.Tensor)]
        self.seen.add((operator, *tensors))
        return operator(*args, **(keywords or {}))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_one_layer_of_each_kind_runs_whatever_the_model_runs(family, checkpoint):
    config = read_model_config(checkpoint(family.name))
    whole = build_model(config, ops_for("torch"), torch.bfloat16, torch.float32, 128)
    kinds, seen = whole.one_of_each_kind(), []
    meta = {"device": "meta"}
    cache = CacheTensors(whole.layout(page_size=4), 30, 4, lambda shape, dtype: torch.empty(shape, dtype=dtype, **meta))
    whole(to_meta(make_step(*MIXED, padding=3)), cache)  # what ops make of weights they make once
    for model in (whole, kinds):
        step = to_meta(make_step(*MIXED, padding=3))
        with Operators() as operators:
            model.logits(model(step, cache)[:5])
        seen.append(operators.seen)
    assert seen[0] == seen[1]
    assert len(kinds.layers) < len(whole.layers) == config.num_hidden_layers
    assert all(layer in list(whole.layers) for layer in kinds.layers)


def test_layout_follows_the_config(checkpoint):
    config = read_model_config(checkpoint("next"))
    layout = build_model(config, ops_for("torch"), torch.bfloat16, torch.float32, 128).layout(page_size=16)
    assert (layout.attention_layers, layout.gdn_layers) == ((2, 5), (0, 1, 3, 4))
    assert (layout.kv.shape, layout.kv.dtype) == ((16, 3, 16), "bfloat16")
    assert (layout.conv.shape, layout.conv.dtype) == ((4, 2 * 3 * 16 + 6 * 24), "bfloat16")
    assert (layout.state.shape, layout.state.dtype) == ((6, 24, 16), "float32")
    assert layout.page_bytes == 2 * 2 * 16 * 3 * 16 * 2
    assert layout.slot_bytes == 4 * (4 * 240 * 2 + 6 * 24 * 16 * 4)


def test_dtypes_are_resolved(checkpoint):
    config = read_model_config(checkpoint("next"))
    assert resolve_dtype(config, "auto") == torch.bfloat16
    assert resolve_dtype(config, "float32") == torch.float32
    assert resolve_state_dtype(config, "auto") == torch.float32  # the config does not name one
    assert resolve_state_dtype(replace(config, mamba_ssm_dtype="bfloat16"), "auto") == torch.bfloat16
    assert resolve_state_dtype(config, "bfloat16") == torch.bfloat16
    with pytest.raises(ConfigError, match="--dtype"):
        resolve_dtype(replace(config, dtype=None), "auto")
    with pytest.raises(ConfigError, match="float8"):
        resolve_dtype(config, "float8")


def test_a_bfloat16_state_is_kept_in_bfloat16(checkpoint):
    """Half the memory, and an error that the logits show but survive."""
    tokens = [[*range(40)]]
    exact, rounded = (
        Stepper(load_model(checkpoint("dense-tied"), torch.float32, dtype), tokens)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.cache.state_tensor.dtype == torch.bfloat16
    assert 2 * rounded.cache.state_tensor.nbytes == exact.cache.state_tensor.nbytes
    differences = [
        (a - b).abs().max()
        for length in (33, 1, 1, 5)
        for (a,), (b,) in [(exact.step([length]), rounded.step([length]))]
    ]
    assert 0 < max(differences) < 0.5
