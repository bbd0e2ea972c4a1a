"""Slots are counted without a clock and without an event loop."""

import pytest

from sse_middleware.limits.slots import Slot, SlotPool


class Stream:
    """A stream that records its end."""

    def __init__(self) -> None:
        self.evicted = 0

    def evict(self) -> None:
        self.evicted += 1

    def watch_for_disconnect(self) -> None: ...

    def blocked_at(self) -> int | None:
        return None


class Watching:
    """Records the changes that are sent to the other processes."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.dropped: list[int] = []

    def on_taken(self, slot: Slot) -> None:
        self.held.append(slot.number)

    def on_released(self, slot: Slot) -> None:
        self.dropped.append(slot.number)


def taken(slots: SlotPool, client: str | None, *, reads_end: bool = True) -> tuple[Slot, Stream]:
    slot, stream = slots.take(client, reads_end=reads_end), Stream()
    slot.attach(stream)
    return slot, stream


def test_a_slot_is_released_once() -> None:
    slots = SlotPool(2, 1)
    watching = Watching()
    slots.listener = watching
    slot, _ = taken(slots, "a")
    taken(slots, "b")
    assert slots.is_full
    assert slots.is_share_used("a")
    for _ in range(2):
        slot.release()
        slot.set_lingering(lingers=True)
        slot.set_lingering(lingers=False)
    assert len(slots) == 1
    assert not slots.is_share_used("a")
    assert watching.dropped == [1]
    assert watching.held == []


def test_the_first_slots_of_an_exceeded_share_are_within_it() -> None:
    slots = SlotPool(None, 2)
    several = [taken(slots, "a")[0] for _ in range(4)]
    assert [slots.is_within_share(slot) for slot in several] == [True, True, False, False]
    several[0].release()
    assert [slots.is_within_share(slot) for slot in several[1:]] == [True, True, False]
    assert all(slots.is_within_share(taken(slots, None)[0]) for _ in range(4))


def test_a_lingering_stream_holds_no_slot_and_takes_one_again_without_a_check() -> None:
    slots = SlotPool(1, 1)
    watching = Watching()
    slots.listener = watching
    slot, stream = taken(slots, "a")
    slot.set_lingering(lingers=True)
    slot.set_lingering(lingers=True)
    assert not slots.is_full
    assert not slots.is_share_used("a")
    assert slots.lingering_clients() == ["a"]
    taken(slots, "b")
    slot.set_lingering(lingers=False)
    assert len(slots) == 2
    assert (watching.dropped, watching.held) == ([1], [1])
    assert not stream.evicted
    assert slots.lingering_clients() == []


@pytest.mark.parametrize(("elsewhere", "expected"), [(0, [1, 0]), (1, [1, 1]), (9, [1, 1])])
def test_lingering_streams_are_evicted_oldest_first_until_the_client_is_within_its_share(
    elsewhere: int, expected: list[int]
) -> None:
    slots = SlotPool(None, 2)
    waiting = [taken(slots, "a") for _ in range(2)]
    other, others_stream = taken(slots, "b")
    for slot, _ in (*waiting, (other, None)):
        slot.set_lingering(lingers=True)
    _, newest = taken(slots, "a")
    slots.trim("a", elsewhere)
    assert [stream.evicted for _, stream in waiting] == expected
    assert (newest.evicted, others_stream.evicted) == (0, 0)


def test_the_client_with_most_streams_is_evicted_and_one_with_a_single_stream_is_not() -> None:
    slots = SlotPool(5, None)
    several = [taken(slots, "a")[0] for _ in range(2)]
    many = [taken(slots, "b")[0] for _ in range(3)]
    assert slots.eviction_candidate("c", any_kind=False) is many[0]
    assert slots.eviction_candidate("a", any_kind=False) is several[0]
    for slot in (*many[:2], several[0]):
        slot.release()
    assert slots.eviction_candidate("c", any_kind=False) is None
    assert slots.eviction_candidate(None, any_kind=False) is None
    assert SlotPool(1, None).eviction_candidate("c", any_kind=True) is None


def test_a_client_without_end_events_is_evicted_only_if_any_may_be() -> None:
    slots = SlotPool(2, 2)
    plain, _ = taken(slots, "a", reads_end=False)
    notified, _ = taken(slots, "a")
    assert slots.oldest("a", any_kind=False) is notified
    assert slots.oldest("a", any_kind=True) is plain
    reserved = SlotPool(2, 2)
    reserved.take("a", reads_end=True)
    assert reserved.oldest("a", any_kind=True) is None


def test_a_slot_that_is_evicted_before_its_stream_opens_ends_it_then() -> None:
    slots = SlotPool(1, 1)
    slot, stream = slots.take("a", reads_end=True), Stream()
    slot.evict()
    assert len(slots) == 0
    slot.attach(stream)
    assert stream.evicted == 1


def test_nothing_is_left_of_clients_that_have_nothing() -> None:
    slots = SlotPool(None, 1)
    for number in range(100):
        slot, _ = taken(slots, f"client {number}")
        slot.set_lingering(lingers=bool(number % 2))
        slot.release()
    assert len(slots) == 0
    assert slots._shares == {}
