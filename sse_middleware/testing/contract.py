"""The contract of an event store, as a suite of tests that any store has to pass."""

from sse_middleware.testing.contract_bounds import BoundsTrials
from sse_middleware.testing.contract_claims import ClaimTrials
from sse_middleware.testing.contract_ends import EndTrials
from sse_middleware.testing.contract_producers import ProducerTrials
from sse_middleware.testing.contract_reading import ReadingTrials


class StoreContract(ReadingTrials, EndTrials, BoundsTrials, ProducerTrials, ClaimTrials):
    """Test an event store: inherit from this class, and define how to make a store.

    Each test runs in its own event loop, with a new store, and closes it. Give your class a name
    that your test runner collects, and override:

    - `make_store(*, max_events, max_bytes, ttl)`: return a new store with these bounds;
    - `pass_time(seconds)`: advance the store's time. The default sleeps; if the clock of the store
      can be faked, advance the clock instead.

    The tests poll for results that need not be immediate, because a store may deliver an event
    first and store it soon after.
    """
