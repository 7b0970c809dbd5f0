"""DraftStep and PendingStep: a step while it is planned, and from then until its result is applied."""

from dataclasses import dataclass, field

from hotstart.engine.plan import NO_SLOT, Span, StepPlan
from hotstart.engine.sequence import Sequence

__all__ = ["DraftStep", "PendingStep"]


@dataclass(slots=True)
class DraftStep:
    budget: int  # tokens that may still be added
    single: list[Span] = field(default_factory=list)
    longer: list[Span] = field(default_factory=list)
    single_sequences: list[Sequence] = field(default_factory=list)
    longer_sequences: list[Sequence] = field(default_factory=list)
    snapshots: list[tuple[Sequence, Span]] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)

    def add(self, sequence: Sequence, span: Span) -> None:
        self.budget -= span.length
        if span.length == 1:
            self.single.append(span)
            self.single_sequences.append(sequence)
        else:
            self.longer.append(span)
            self.longer_sequences.append(sequence)
        if span.write_slot != sequence.slot:
            self.snapshots.append((sequence, span))
        if span.read_slot != sequence.slot and span.read_slot != NO_SLOT:
            self.reads.append(span.read_slot)

    def close(self, step_id: int) -> "PendingStep":
        # By slot: states that lie one after the other are worked on where they are, in one piece.
        order = sorted(range(len(self.single)), key=lambda i: self.single[i].write_slot)
        plan = StepPlan(step_id, (*(self.single[i] for i in order), *self.longer))
        sequences = [*(self.single_sequences[i] for i in order), *self.longer_sequences]
        return PendingStep(plan, sequences, self.snapshots, self.reads)


@dataclass(frozen=True, slots=True)
class PendingStep:
    plan: StepPlan
    sequences: list[Sequence]  # one for each span
    snapshots: list[tuple[Sequence, Span]]  # spans that leave their state in a slot of its own, and whose they are
    reads: list[int]  # slots of snapshots that the step reads: its references to them
