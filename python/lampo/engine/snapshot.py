# SPDX-License-Identifier: Apache-2.0
"""The engine's state between two steps, and its invariants."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class SequenceSnapshot:
    """One completion of an unfinished request.

    Attributes:
        request_id, index: the request, and the completion's index.
        state: "running", "waiting", or "not started": it starts when the prompt has been computed.
        done: whether it has ended.
        num_tokens: prompt and output.
        num_computed: tokens in the cache.
        num_in_flight: tokens of steps that have been launched and not been read.
        pages: held, in order of position; -1 for those outside all windows.
        state_slot: its slot for a state; None: it has none.
    """

    request_id: str
    index: int
    state: str
    done: bool
    num_tokens: int
    num_computed: int
    num_in_flight: int
    pages: tuple[int, ...]
    state_slot: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """All pages and queues of the engine between two steps; immutable.

    Attributes:
        num_pages, page_size: of the pool.
        free, cached: pages without a holder: unknown ones, and those known by their tokens.
        known: pages of the prefix cache, held or not.
        ref_counts: number of holders per page.
        max_num_seqs: sequences that may run.
        window: the layers' largest, in positions; None: unlimited.
        num_slots: slots for states, one per running sequence; 0: the model has none.
        free_slots, saved_slots: without a sequence: free ones, and those of saved states.
        sequences: of all unfinished requests.
    """

    num_pages: int
    page_size: int
    free: tuple[int, ...]
    cached: tuple[int, ...]
    known: tuple[int, ...]
    ref_counts: tuple[int, ...]
    max_num_seqs: int
    sequences: tuple[SequenceSnapshot, ...]
    window: int | None = None
    num_slots: int = 0
    free_slots: tuple[int, ...] = ()
    saved_slots: tuple[int, ...] = ()


def violations(snapshot: Snapshot) -> list[str]:
    """Violated invariants of a state, a line per violation; empty if all hold."""
    found: list[str] = []
    free, cached, known = set(snapshot.free), set(snapshot.cached), set(snapshot.known)
    used = {page for page, count in enumerate(snapshot.ref_counts) if count}
    total = len(snapshot.free) + len(snapshot.cached) + len(used)
    if total != snapshot.num_pages or free | cached | used != set(range(snapshot.num_pages)):
        found.append(
            f"{len(snapshot.free)} free + {len(snapshot.cached)} cached + {len(used)} used pages "
            f"are not the {snapshot.num_pages} of the pool"
        )
    if not cached <= known or free & known or len(known) != len(snapshot.known):
        found.append("known pages are not the cached ones and some of those in use")

    holders: Counter[int] = Counter()
    slots: Counter[int] = Counter()
    for sequence in snapshot.sequences:
        name = f"{sequence.request_id}[{sequence.index}], {sequence.state}"
        pages = sequence.pages
        held = [page for page in pages if page >= 0]
        holders.update(held)
        if len(set(held)) != len(held):
            found.append(f"{name}: holds a page twice: {pages}")
        unseen = 0
        if snapshot.window is not None:
            unseen = max(sequence.num_computed - snapshot.window + 1, 0) // snapshot.page_size
        if any((page < 0) != (i < unseen) for i, page in enumerate(pages)):
            found.append(f"{name}: the first {unseen} pages are unseen, and no others: {pages}")
        if sequence.state_slot is not None:
            slots[sequence.state_slot] += 1
        if (sequence.state_slot is not None) != (
            snapshot.num_slots > 0 and sequence.state == "running" and not sequence.done
        ):
            found.append(f"{name}: has slot {sequence.state_slot}")
        if sequence.done:
            found += [f"{name}: has ended and is queued"] * (sequence.state != "not started")
            found += [f"{name}: has ended and holds pages"] * bool(pages)
        elif sequence.state == "running":
            num_tokens = sequence.num_computed + sequence.num_in_flight
            if len(pages) != -(-num_tokens // snapshot.page_size):
                found.append(f"{name}: {len(pages)} pages for {num_tokens} tokens")
            if not sequence.num_computed < sequence.num_tokens:
                found.append(f"{name}: nothing is left to compute, but it has not ended")
        elif pages or sequence.num_computed:
            found.append(f"{name}: holds pages or computed tokens")
    for page, count in enumerate(snapshot.ref_counts):
        if holders[page] != count:
            found.append(f"page {page}: {holders[page]} sequences hold it, counted {count}")
    slots.update(snapshot.free_slots)
    slots.update(snapshot.saved_slots)
    for slot in range(snapshot.num_slots):
        if slots[slot] != 1:
            found.append(f"slot {slot}: {slots[slot]} sequences, saved states or free places")
    if sum(s.state == "running" for s in snapshot.sequences) > snapshot.max_num_seqs:
        found.append(f"more than max_num_seqs = {snapshot.max_num_seqs} sequences run")
    return found
