# SPDX-License-Identifier: Apache-2.0
"""The scheduler: sequences of a step, their numbers of tokens, and their pages."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection
from dataclasses import dataclass, field
from operator import attrgetter

from lampo.engine.page_allocator import FREED, PageAllocator
from lampo.engine.request import Sequence
from lampo.engine.state_slots import StateSlots

_order = attrgetter("order")


@dataclass
class Plan:
    """One step. Its pages are reserved; nothing else has happened yet.

    Attributes:
        work: sequence -> tokens to compute: 1 for those that decode, which come first, and a chunk
            of the prompt for others.
        copies: (source, target) pages to copy first: a page with other holders is not written.
    """

    work: dict[Sequence, int] = field(default_factory=dict)
    copies: list[tuple[int, int]] = field(default_factory=list)
    # Sequence -> its pages before the step.
    before: dict[Sequence, list[int]] = field(default_factory=dict)


class Scheduler:
    """Continuous batching: all decoding sequences take part in every step, and prompts fill it up.

    The first by `Sequence.order` is admitted first, gets pages first and is preempted last. A
    preempted sequence waits and is recomputed: mostly found in the prefix cache. The first sequence
    always advances, as the pool holds the longest sequence.

    Args:
        allocator: of the pool's pages.
        max_num_seqs: sequences that hold pages at the same time.
        max_num_batched_tokens: prompt tokens of a step.
        states: slots for states, at least max_num_seqs; None: the model has none. A state is valid
            for one length of its sequence only: after a failed step or a preemption sequences are
            recomputed, from the last saved state on.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        states: StateSlots | None = None,
    ) -> None:
        self.allocator = allocator
        self.states = states
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: list[Sequence] = []  # by order
        self.running: dict[Sequence, None] = {}
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Removes a sequence, running or waiting, and frees its pages."""
        if sequence in self.running:
            del self.running[sequence]
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._take_pages(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> bool:
        """Starts `child`, of the same prompt, at the position of `parent`, in the same pages, with
        a copy of its state.

        Returns:
            whether there was room; if not, the child waits, and computes its prompt itself.
        """
        if len(self.running) >= self.max_num_seqs:
            self.add(child)
            return False
        if self.states is not None:
            child.state_slot = self.states.take(parent.state_slot)
        self.allocator.share(parent.pages)
        child.pages = list(parent.pages)
        child.num_computed = parent.num_computed
        self.running[child] = None
        return True

    def plan(self) -> Plan:
        """The next step, its pages reserved. To be followed by `commit` or `roll_back`."""
        plan = Plan()
        preempted = self.num_preemptions
        decoding = [s for s in self.running if s.num_pending == 1]
        prompts = [s for s in self.running if s.num_pending > 1]
        for sequence in sorted(decoding, key=_order):
            self._schedule(plan, sequence, 1)
        budget = self.max_num_batched_tokens
        for sequence in sorted(prompts, key=_order):
            budget -= self._schedule(plan, sequence, min(budget, sequence.num_pending))
        while (
            budget > 0
            and self.waiting
            and len(self.running) < self.max_num_seqs
            and self.num_preemptions == preempted
            and self._admit(self.waiting[0])
        ):
            sequence = self.waiting[0]
            self.running[sequence] = None
            del self.waiting[0]
            budget -= self._schedule(plan, sequence, min(budget, sequence.num_pending))
        return plan

    def plan_ahead(self, sequences: list[Sequence]) -> Plan | None:
        """The decode step after one that is planned and not committed, of the same sequences.

        Returns:
            None if it would preempt a sequence or copy a page, or if a state is to be saved
            between the two.
        """
        size, counts = self.allocator.page_size, self.allocator.ref_counts
        ends = [s.num_computed + 1 for s in sequences]  # of the step before
        if self.states is not None and any(self.states.is_edge(end) for end in ends):
            return None
        full = []
        for end, sequence in zip(ends, sequences, strict=True):
            if end % size == 0:
                full.append(sequence)
            elif counts[sequence.pages[-1]] > 1:
                return None
        if len(full) > self.allocator.num_available:
            return None
        plan = Plan(dict.fromkeys(sequences, 1), [], {s: s.pages for s in full})
        for sequence, page in zip(full, self.allocator.allocate(len(full)), strict=True):
            sequence.pages = [*sequence.pages, page]
        return plan

    def commit(self, plan: Plan) -> None:
        """Marks a step as computed: its tokens are in the cache, and full pages become known.

        Sequences that have ended since it was planned hold no pages and are skipped.
        """
        plan.before.clear()
        page_size = self.allocator.page_size
        if plan.copies:
            self.allocator.release([source for source, _ in plan.copies])
        for sequence, count in plan.work.items():
            if sequence.done:
                continue
            first = sequence.num_computed // page_size
            sequence.num_computed += count
            last = sequence.num_computed // page_size
            if last > first and self.allocator.prefix_caching:
                sequence.chain.extend(sequence.token_ids, last)
                for i in range(first, last):
                    self.allocator.register(sequence.pages[i], sequence.chain, i)
                self._save_state(sequence)
            self._free_unseen(sequence)

    def roll_back(self, plan: Plan, all_sequences: Collection[Sequence]) -> None:
        """Undoes a step that failed at any point: frees the pages reserved for it.

        Args:
            plan: the step.
            all_sequences: all sequences that may hold pages, to count them again.
        """
        for sequence, pages in plan.before.items():
            if sequence in self.running:
                freed = self.allocator.first_seen(sequence.num_computed)
                sequence.pages = [FREED] * freed + pages[freed:]
        plan.before.clear()
        # An admission may have been interrupted.
        self.waiting = [sequence for sequence in self.waiting if sequence not in self.running]
        for sequence in self.waiting:
            sequence.pages, sequence.num_computed, sequence.state_slot = [], 0, None
        if self.states is not None:
            for sequence in plan.work:
                if sequence in self.running:
                    self._requeue(sequence)
            slots = [sequence.state_slot for sequence in all_sequences]
            self.states.recount(slot for slot in slots if slot is not None)
        self.allocator.recount(sequence.pages for sequence in all_sequences)

    def _schedule(self, plan: Plan, sequence: Sequence, count: int) -> int:
        """Adds `count` tokens of a running sequence to the plan, if there are pages for them."""
        if count == 0 or sequence not in self.running:  # it may be preempted by now
            return 0
        if self.states is not None:  # a step ends where states are saved
            count = min(count, self.states.tokens_to_edge(sequence.num_computed) or count)
        end, pages = sequence.num_computed + count, sequence.pages
        # A partly filled page with other holders is copied.
        shared = sequence.num_computed % self.allocator.page_size > 0 and (
            self.allocator.ref_counts[pages[-1]] > 1
        )
        needed = self.allocator.pages_for(end) - len(pages) + shared
        while needed > self.allocator.num_available:
            victim = max(self.running, key=_order)
            self._preempt(plan, victim)
            if victim is sequence:
                return 0
        if needed > 0:
            plan.before[sequence] = pages
            fresh = self.allocator.allocate(needed)
            if shared:
                plan.copies.append((pages[-1], fresh[0]))
                pages = pages[:-1]
            sequence.pages = pages + fresh
        plan.work[sequence] = count
        return count

    def _admit(self, sequence: Sequence) -> bool:
        """Gives a waiting sequence the known pages of its tokens.

        Returns:
            False if the pool lacks room for all its tokens, beside those of the running sequences
            and one more page per running sequence.
        """
        allocator = self.allocator
        matched: list[int] = []
        if allocator.prefix_caching and sequence.prompt_logprobs is None:
            # The last token is always computed: its logits are needed.
            known = (len(sequence.token_ids) - 1) // allocator.page_size
            sequence.chain.extend(sequence.token_ids, known)
            matched = self._match(sequence, known)
        sequence.pages = matched
        needed = sum(1 + self._pages_missing(s) for s in self.running)
        if needed + self._pages_missing(sequence) > allocator.num_available and self.running:
            self._take_pages(sequence)
            return False
        sequence.num_computed = len(matched) * allocator.page_size
        if self.states is not None:
            if matched:
                key = sequence.chain.page(len(matched) - 1)[0]
                sequence.state_slot = self.states.restore(key)
            else:
                sequence.state_slot = self.states.take()
        if not sequence.request.prompt_computed:
            sequence.request.num_cached_tokens = sequence.num_computed
        return True

    def _match(self, sequence: Sequence, known: int) -> list[int]:
        """The longest cached prefix of at most `known` pages; with states, one that ends where a
        state is saved."""
        allocator, states = self.allocator, self.states
        if states is None:
            return allocator.match(sequence.chain, known)
        if not states.distance:
            return []
        step = states.distance // allocator.page_size
        for count in range(known // step * step, 0, -step):
            if states.is_saved(sequence.chain.page(count - 1)[0]):
                matched = allocator.match(sequence.chain, count)
                if len(matched) == count:
                    return matched
                allocator.release(matched)
        return []

    def _save_state(self, sequence: Sequence) -> None:
        """Saves a copy of the sequence's state, if it has come to where states are saved."""
        states, count = self.states, sequence.num_computed
        if states is None or not states.is_edge(count):
            return
        assert sequence.state_slot is not None
        key = sequence.chain.page(count // self.allocator.page_size - 1)[0]
        states.save(key, sequence.state_slot)

    def _pages_missing(self, sequence: Sequence) -> int:
        """Largest number of pages that the sequence still needs at one time for its tokens."""
        allocator = self.allocator
        missing = allocator.pages_for(len(sequence.token_ids)) - len(sequence.pages)
        if allocator.window is None:
            return missing
        most = allocator.pages_for(allocator.window + self.max_num_batched_tokens) + 1
        held = len(sequence.pages) - allocator.first_seen(sequence.num_computed)
        return max(min(missing, most - held), 0)

    def _free_unseen(self, sequence: Sequence) -> None:
        """Frees the pages that no later token of the sequence sees."""
        first = self.allocator.first_seen(sequence.num_computed)
        if first > 0 and sequence.pages[first - 1] != FREED:
            self.allocator.release(sequence.pages[:first])
            sequence.pages = [FREED] * first + sequence.pages[first:]

    def _requeue(self, sequence: Sequence) -> None:
        """Frees the pages and state of a running sequence, and queues it to be recomputed."""
        del self.running[sequence]
        self._take_pages(sequence)
        sequence.num_computed = 0
        self.add(sequence)

    def _preempt(self, plan: Plan, victim: Sequence) -> None:
        self.num_preemptions += 1
        plan.work.pop(victim, None)
        if victim in plan.before:
            copied = [page for page in plan.before.pop(victim) if page not in victim.pages]
            plan.copies = [pair for pair in plan.copies if pair[1] not in victim.pages]
            self.allocator.release(copied)
        self._requeue(victim)

    def _take_pages(self, sequence: Sequence) -> None:
        self.allocator.release(sequence.pages)
        sequence.pages = []
        if self.states is not None and sequence.state_slot is not None:
            self.states.release(sequence.state_slot)
            sequence.state_slot = None
