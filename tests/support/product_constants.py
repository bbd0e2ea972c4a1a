"""Other values for time constants of the package, in a process of a test.

A guarantee in seconds that has no setting is tested with a value that a busy machine cannot break,
or that a test can wait for.
"""

from types import ModuleType


def override(value: float, name: str, *modules: ModuleType) -> None:
    """Set the constant `name` in each module that defines or imports it."""
    for module in modules:
        assert name in vars(module), f"{module.__name__} has no {name}"
        setattr(module, name, value)
