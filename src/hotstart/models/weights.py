"""Weights: give a model on the meta device its memory and its values.

Every tensor of a checkpoint is consumed or skipped for a stated reason, every parameter is filled, or an error lists
what is left on both sides; all of that is known from the headers, before memory is taken.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hotstart import log
from hotstart.cache.tensors import Allocate
from hotstart.errors import CheckpointError
from hotstart.layers.fused import Fused, Piece
from hotstart.layers.rotary import RotaryTable
from hotstart.models.checkpoint import StoredTensor, open_checkpoint, read_tensors, shortened
from hotstart.models.qwen3_5 import Qwen35
from hotstart.models.stream import stream_tensors

__all__ = ["Progress", "checkpoint_shapes", "fill_random", "load_weights"]

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_PREFIXES = ("model.language_model.", "language_model.", "model.")
_SKIPPED = {  # reason -> how such names begin
    "vision": ("model.visual.", "visual."),
    "multi-token prediction": ("mtp.",),
}
_COMPUTED = "rotary_emb.inv_freq"


@runtime_checkable
class _Fuses(Protocol):
    def fused(self) -> list[Fused]: ...


@dataclass(frozen=True, slots=True)
class _Spelling:
    """One way in which a checkpoint can hold a parameter: piece by checkpoint name."""

    pieces: dict[str, Piece]

    def present(self, names: set[str]) -> list[str]:
        return [name for name in self.pieces if name in names]

    def missing(self, names: set[str]) -> list[str]:
        return [name for name in self.pieces if name not in names]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A parameter: the spellings of which one fills it, and the rows that none fills."""

    spellings: list[_Spelling]
    padding: tuple[Tensor, ...] = ()


def load_weights(
    model: Qwen35,
    folder: str | Path,
    allocate: Allocate,
    on_progress: Progress | None = None,
    stream_to: torch.device | None = None,
) -> None:
    """Stream the checkpoint's tensors into the model's parameters.

    `allocate(shape, dtype)` supplies each parameter's memory, and with it the device: `stream_to` says that it is one
    which bytes are copied to, so that files are read ahead.  Raises CheckpointError.
    """
    folder = Path(folder)
    stored = _by_our_names(open_checkpoint(folder))
    tied_head = stored.pop("lm_head.weight", None) if model.lm_head is None else None
    _check(model, folder, stored)

    _materialise(model, allocate)
    wanted = _wanted(model)
    pieces = {name: piece for one in wanted for way in one.spellings for name, piece in way.pieces.items()}
    names = {tensor: name for name, tensor in stored.items()}
    total = sum(tensor.num_bytes for tensor in names)
    done = 0
    wishes = [(tensor, pieces[name]) for tensor, name in names.items()]
    for tensor in _fill(wishes) if stream_to is None else stream_tensors(wishes, stream_to):
        done += tensor.num_bytes
        if on_progress:
            on_progress(done, total)
    _zero_padding(wanted)
    if tied_head:
        _check_tied_head(model, tied_head)


def fill_random(model: Qwen35, seed: int, allocate: Allocate) -> None:
    """Random weights of a magnitude that keeps every activation near one; the same for the same seed and device."""
    _materialise(model, allocate)
    if model.embed_tokens.weight.is_meta:
        return
    generator: torch.Generator | None = None
    for name, parameter in model.named_parameters():
        if generator is None:
            generator = torch.Generator(parameter.device).manual_seed(seed)
        kind = name.rpartition(".")[2]
        if kind == "A_log":
            parameter.uniform_(1.0, 16.0, generator=generator).log_()
        elif kind == "dt_bias":
            # Steps of 0.001 to 0.1, as in trained models: states remember.  Without memory an output is one product
            # of two random vectors, and the norm after it amplifies rounding a thousandfold.
            parameter.uniform_(math.log(1e-3), math.log(1e-1), generator=generator)
        elif kind == "norm_weight" and "linear_attn" in name:
            parameter.fill_(1.0)
        elif parameter.ndim == 1:
            parameter.zero_()
        elif parameter is model.embed_tokens.weight:
            parameter.normal_(0.0, 0.07, generator=generator)
        else:
            parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[-1]), generator=generator)
    _zero_padding(_wanted(model))


def _fill(wanted: list[tuple[StoredTensor, Piece]]) -> Iterator[StoredTensor]:
    pieces = dict(wanted)
    for tensor, values in read_tensors(list(pieces)):
        pieces[tensor].fill(values)
        yield tensor


def checkpoint_shapes(model: nn.Module, spelling: int = 0) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of the model holds: shapes by name, in the first of the spellings that are read, or another
    one where there are so many."""
    ways = (one.spellings[min(spelling, len(one.spellings) - 1)] for one in _wanted(model))
    return {name: piece.shape for way in ways for name, piece in way.pieces.items()}


def _by_our_names(tensors: list[StoredTensor]) -> dict[str, StoredTensor]:
    """What is to be loaded, by the names that the model's modules give."""
    ours: dict[str, StoredTensor] = {}
    skipped: dict[str, int] = {}
    for tensor in tensors:
        reason = next((why for why, starts in _SKIPPED.items() if tensor.name.startswith(starts)), None)
        if reason:
            skipped[reason] = skipped.get(reason, 0) + 1
        elif not tensor.name.endswith(_COMPUTED):
            prefix = next((p for p in _PREFIXES if tensor.name.startswith(p)), "")
            name = tensor.name.removeprefix(prefix)
            if name in ours:
                raise CheckpointError(f"the checkpoint holds {name} twice: as {ours[name].name} and as {tensor.name}")
            ours[name] = tensor
    for reason, count in skipped.items():
        log.info("tensors left unread", reason=reason, tensors=count)
    return ours


def _wanted(model: nn.Module) -> list[_Wanted]:
    wanted: list[_Wanted] = []
    claimed: set[int] = set()
    for path, module in model.named_modules():
        for fused in module.fused() if isinstance(module, _Fuses) else ():
            ways = [_Spelling({f"{path}.{piece.name}": piece for piece in way}) for way in fused.spellings]
            wanted.append(_Wanted(ways, fused.padding))
            claimed.add(id(fused.parameter))
    for name, parameter in model.named_parameters():
        if id(parameter) not in claimed:
            wanted.append(_Wanted([_Spelling({name: Piece(name, (parameter.unsqueeze(0),))})]))
    return wanted


def _check(model: Qwen35, folder: Path, stored: dict[str, StoredTensor]) -> None:
    names = set(stored)
    unused, missing, wrong = set(names), [], []
    for one in _wanted(model):
        way = max(one.spellings, key=lambda spelling: len(spelling.present(names)))
        unused -= way.pieces.keys()
        missing += way.missing(names)
        for name in way.present(names):
            tensor, shape = stored[name], way.pieces[name].shape
            if tensor.shape != shape:
                wrong.append(f"{tensor.name} has shape {list(tensor.shape)}, expected {list(shape)}")
            elif not tensor.is_float:
                wrong.append(f"{tensor.name} has dtype {tensor.dtype}, expected BF16, F16 or F32")
    problems = []
    if missing:
        hint = " (if it shares the embedding, config.json must say tie_word_embeddings: true)"
        problems.append(f"{len(missing)} missing: {shortened(missing)}{hint if 'lm_head.weight' in missing else ''}")
    if unused:
        left = sorted(stored[name].name for name in unused)
        problems.append(f"{len(left)} that {model.config.architecture} does not use: {shortened(left)}")
    if wrong:
        problems.append(f"{len(wrong)} unfit: {shortened(wrong)}")
    if problems:
        raise CheckpointError(f"the tensors of {folder} do not match its config.json: {'; '.join(problems)}")


def _check_tied_head(model: Qwen35, tensor: StoredTensor) -> None:
    embedding = model.embed_tokens.weight
    ((_, values),) = read_tensors([tensor])
    if values.shape != embedding.shape or not torch.equal(values.to(embedding.dtype), embedding.cpu()):
        raise CheckpointError(
            f"config.json says tie_word_embeddings: true, but {tensor.name} differs from the embedding; "
            "set it to false in config.json if the head is meant"
        )


def _materialise(model: nn.Module, allocate: Allocate) -> None:
    """Give every parameter and table its memory; compute what is not loaded."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            memory = allocate(tuple(parameter.shape), parameter.dtype)
            setattr(module, name, nn.Parameter(memory, requires_grad=False))
        if isinstance(module, RotaryTable):
            module.table = allocate(tuple(module.table.shape), module.table.dtype)
            module.fill()


def _zero_padding(wanted: list[_Wanted]) -> None:
    for one in wanted:
        for rows in one.padding:
            rows.zero_()
