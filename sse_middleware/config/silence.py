"""The silence after which a client should reconnect, which depends on the heartbeats."""

import logging

logger = logging.getLogger("sse_middleware")

SILENCE_SECONDS = 15.0
_MISSED_HEARTBEATS = 3
"""The number of missed heartbeats after which a client should reconnect."""


def silence_for(silence: float | None, interval: float | None, *, is_set: bool) -> float | None:
    """Return the silence threshold in seconds, `None` for none.

    Args:
        silence: the threshold in the settings.
        interval: the time between two heartbeats, `None` for none.
        is_set: whether the threshold is set. If not, one that suits the heartbeats replaces it.
    """
    if not is_set:
        return None if interval is None else max(SILENCE_SECONDS, _MISSED_HEARTBEATS * interval)
    if silence is not None and interval is not None and silence <= interval:
        logger.warning(
            "silence_threshold is %g s and heartbeat_interval %g s, so that clients reconnect "
            "between two heartbeats; set SSE_SILENCE_THRESHOLD to more than SSE_HEARTBEAT_INTERVAL",
            silence,
            interval,
        )
    return silence
