from tests.support.installed import no_earlier_middleware

__all__ = ["no_earlier_middleware"]  # a fixture of all tests here
