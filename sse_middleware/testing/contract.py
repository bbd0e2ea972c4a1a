"""The contract of a store of events, as a suite of tests that any store has to pass."""

from sse_middleware.testing.contract_bounds import BoundsTrials
from sse_middleware.testing.contract_ends import EndTrials
from sse_middleware.testing.contract_producers import ProducerTrials
from sse_middleware.testing.contract_reading import ReadingTrials


class StoreContract(ReadingTrials, EndTrials, BoundsTrials, ProducerTrials):
    """Test a store of events: inherit from it, and say how to make one.

    Each test runs an event loop of its own, with a new store, and closes it. Give your class a name
    that your test runner collects, and override:

    - `make_store(*, max_events, max_bytes, ttl)`: return a new store with these bounds;
    - `pass_time(seconds)`: let time go by for it. Here it sleeps; where the store's clock can be
      faked, advance that instead.

    A store is asked again and again for what need not happen at once, for it shows an event first
    and stores it soon after.
    """
