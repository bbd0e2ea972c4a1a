"""The order of the types of events in a stream."""

from typing import Any

import pytest

from sse_middleware import ConfigurationError
from sse_middleware.protocol.event_order import OrderCheck, validate_order


@pytest.mark.parametrize(
    ("names", "violations"),
    [
        ("token token citation done", ""),
        ("token done", ""),
        ("done", ""),
        ("token other citation other done other", ""),
        ("citation token", "citation"),
        ("token done token citation", "done done"),
        ("done citation done token", "done done"),
        ("citation token token done", "citation citation"),
    ],
)
def test_a_type_must_not_follow_a_later_one(names: str, violations: str) -> None:
    check = OrderCheck(("token", "citation", "done"))
    assert " ".join(filter(None, map(check.add, names.split()))) == violations


@pytest.mark.parametrize("order", [(), ("one",), ("a", "b", "a"), "token", ("a", ""), ("a", 1)])
def test_an_order_that_orders_nothing_is_not_allowed(order: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"order is .*, allowed is two or more names"):
        validate_order(order)


def test_an_order_may_be_a_list() -> None:
    assert validate_order(["a", "b"]) == ("a", "b")
