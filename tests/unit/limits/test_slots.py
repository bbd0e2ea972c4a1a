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

    def hold(self, place: Slot) -> None:
        self.held.append(place.number)

    def drop(self, place: Slot) -> None:
        self.dropped.append(place.number)


def taken(places: SlotPool, client: str | None, *, tells_end: bool = True) -> tuple[Slot, Stream]:
    place, stream = places.take(client, tells_end=tells_end), Stream()
    place.attach(stream)
    return place, stream


def test_a_slot_is_released_once() -> None:
    places = SlotPool(2, 1)
    watching = Watching()
    places.listener = watching
    place, _ = taken(places, "a")
    taken(places, "b")
    assert places.is_full
    assert places.is_used_up("a")
    for _ in range(2):
        place.release()
        place.wait(waits=True)
        place.wait(waits=False)
    assert len(places) == 1
    assert not places.is_used_up("a")
    assert watching.dropped == [1]
    assert watching.held == []


def test_the_first_slots_of_an_exceeded_share_are_within_it() -> None:
    places = SlotPool(None, 2)
    several = [taken(places, "a")[0] for _ in range(4)]
    assert [places.is_within_share(place) for place in several] == [True, True, False, False]
    several[0].release()
    assert [places.is_within_share(place) for place in several[1:]] == [True, True, False]
    assert all(places.is_within_share(taken(places, None)[0]) for _ in range(4))


def test_a_lingering_stream_holds_no_slot_and_takes_one_again_without_a_check() -> None:
    places = SlotPool(1, 1)
    watching = Watching()
    places.listener = watching
    place, stream = taken(places, "a")
    place.wait(waits=True)
    place.wait(waits=True)
    assert not places.is_full
    assert not places.is_used_up("a")
    assert places.clients_waiting() == ["a"]
    taken(places, "b")
    place.wait(waits=False)
    assert len(places) == 2
    assert (watching.dropped, watching.held) == ([1], [1])
    assert not stream.evicted
    assert places.clients_waiting() == []


@pytest.mark.parametrize(("elsewhere", "expected"), [(0, [1, 0]), (1, [1, 1]), (9, [1, 1])])
def test_streams_that_wait_go_oldest_first_until_their_client_has_its_share(
    elsewhere: int, expected: list[int]
) -> None:
    places = SlotPool(None, 2)
    waiting = [taken(places, "a") for _ in range(2)]
    other, others_stream = taken(places, "b")
    for place, _ in (*waiting, (other, None)):
        place.wait(waits=True)
    _, newest = taken(places, "a")
    places.trim("a", elsewhere)
    assert [stream.evicted for _, stream in waiting] == expected
    assert (newest.evicted, others_stream.evicted) == (0, 0)


def test_the_client_with_most_streams_is_evicted_and_one_with_a_single_stream_is_not() -> None:
    places = SlotPool(5, None)
    several = [taken(places, "a")[0] for _ in range(2)]
    many = [taken(places, "b")[0] for _ in range(3)]
    assert places.eviction_candidate("c", any_kind=False) is many[0]
    assert places.eviction_candidate("a", any_kind=False) is several[0]
    for place in (*many[:2], several[0]):
        place.release()
    assert places.eviction_candidate("c", any_kind=False) is None
    assert places.eviction_candidate(None, any_kind=False) is None
    assert SlotPool(1, None).eviction_candidate("c", any_kind=True) is None


def test_a_client_without_end_events_is_evicted_only_if_any_may_be() -> None:
    places = SlotPool(2, 2)
    plain, _ = taken(places, "a", tells_end=False)
    told, _ = taken(places, "a")
    assert places.oldest("a", any_kind=False) is told
    assert places.oldest("a", any_kind=True) is plain
    reserved = SlotPool(2, 2)
    reserved.take("a", tells_end=True)
    assert reserved.oldest("a", any_kind=True) is None


def test_a_slot_that_is_evicted_before_its_stream_opens_ends_it_then() -> None:
    places = SlotPool(1, 1)
    place, stream = places.take("a", tells_end=True), Stream()
    place.evict()
    assert len(places) == 0
    place.attach(stream)
    assert stream.evicted == 1


def test_nothing_is_left_of_clients_that_have_nothing() -> None:
    places = SlotPool(None, 1)
    for number in range(100):
        place, _ = taken(places, f"client {number}")
        place.wait(waits=bool(number % 2))
        place.release()
    assert len(places) == 0
    assert places._shares == {}
