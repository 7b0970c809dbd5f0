"""StepInputs: the tensors of one step, complete at construction and padded to the step's rung.

Written by `engine/inputs.py` alone.  Tokens are packed: first one for each decode span, then the prefill spans one
after the other, then padding that belongs to no sequence.  Beside the tensors stand host integers that the plan
knew; an op may read those, never a tensor's value.
"""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["DecodeInputs", "EndInputs", "PrefillInputs", "Step", "StepInputs"]


@dataclass(frozen=True, slots=True, eq=False)  # by identity: what an op derives from one serves all layers of its step
class DecodeInputs:
    """The sequences that advance by one token: tokens [0, N) of the step.

    A read slot of -1 starts from the zero state; a write slot of -1 and a context of 0 mark a padding row, which
    touches no slot and no page.  There are such rows where the step has answers alone and its device captures steps.
    """

    num_sequences: int  # N, real ones
    max_context: int  # host: the longest context of them, 0 if there are none
    contexts: tuple[int, ...]  # host: context_lens
    reads: tuple[int, ...]  # host: read_slots
    writes: tuple[int, ...]  # host: write_slots
    page_table: Tensor  # [rows, max_pages] int32, unused entries 0; rows: N, and those of padding
    context_lens: Tensor  # [rows] int32: tokens to attend to, the new one included
    read_slots: Tensor  # [rows] int32
    write_slots: Tensor  # [rows] int32


@dataclass(frozen=True, slots=True)
class PrefillInputs:
    """The sequences that advance by several tokens: tokens [N, N + sum of lengths) of the step.

    `chunks` lists the blocks of the chunked rule in the order of tokens: a chunk never straddles sequences, and
    chunk boundaries are counted from the start of the span.
    """

    num_sequences: int
    first_token: int  # host: cu_seqlens[0]
    lengths: tuple[int, ...]  # host
    contexts: tuple[int, ...]  # host: tokens of the sequence once this step is done
    reads: tuple[int, ...]  # host: read_slots
    writes: tuple[int, ...]  # host: write_slots
    num_chunks: int
    chunk_length: int
    cu_seqlens: Tensor  # [Np + 1] int32, absolute token offsets: cu_seqlens[0] is the number of decode tokens
    context_lens: Tensor  # [Np] int32
    page_table: Tensor  # [Np, max_pages] int32
    read_slots: Tensor  # [Np] int32
    write_slots: Tensor  # [Np] int32
    chunks: Tensor  # [num_chunks, 4] int32: sequence, first token (absolute), tokens in it, index within its sequence
    cu_chunks: Tensor  # [Np + 1] int32: chunks before each sequence


@dataclass(frozen=True, slots=True)
class EndInputs:
    """The last token of every span, as a step of answers alone: what it attends to is complete once the keys and
    values of the whole step are written.  It has no slots, since states are not read again.
    """

    num_tokens: int  # E, as many as there are spans
    rows: Tensor  # [rows] int32: where they stand among the step's tokens; those of padding repeat the first token
    positions: Tensor  # [rows] int32
    kv_index: Tensor  # [rows] int64, -1 for padding
    decode: DecodeInputs
    prefill: PrefillInputs  # none

    @property
    def num_decodes(self) -> int:
        return self.decode.num_sequences


@dataclass(frozen=True, slots=True)
class StepInputs:
    num_tokens: int  # real tokens; token_ids has the rung's length
    token_ids: Tensor  # [T] int32
    positions: Tensor  # [T] int32
    kv_index: Tensor  # [T] int64: page * page_size + offset where the token's key and value go, -1 for padding
    decode: DecodeInputs
    prefill: PrefillInputs
    ends: EndInputs
    ends_alone: bool  # host: nobody wants more of the last layer than the ends, which are empty otherwise
    logit_rows: Tensor  # [R] int32: rows of the hidden states whose logits are wanted

    @property
    def num_decodes(self) -> int:
        return self.decode.num_sequences


Step = StepInputs | EndInputs  # what ops read of either is the same
