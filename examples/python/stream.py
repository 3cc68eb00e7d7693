"""Meters a stream that may last for minutes: it is counted as it goes, and stops when the plan has no room for more.

Run it against a Tollgate on this machine: python examples/python/stream.py
"""

import time
import uuid
from collections.abc import Iterator

from chat import OverLimit, RESERVE_TIMEOUT_S, protos, settle, tollgate

# How often to count, and for how long to hold from then on. A worker that dies costs its user at most what was not counted for that long, and
# the rest of the hold comes back.
COUNT_EVERY_S = 3
HOLD_S = 30


class Stream:
    """A reservation that goes on while its answer streams."""

    def __init__(self, user_id: str, event):
        asked = protos.ReserveRequest(user_id=user_id, event=event, request_id=str(uuid.uuid4()))
        asked.ttl.FromSeconds(HOLD_S)
        held = tollgate.Reserve(asked, timeout=RESERVE_TIMEOUT_S)
        if not held.allowed:
            raise OverLimit(held)
        self.reservation_id = held.reservation_id

    def count(self, totals: dict[str, float]) -> bool:
        """Counts what was used so far, and holds on. Returns whether there is room for more. A retry counts nothing twice: these are totals."""
        request = protos.CommitRequest(
            reservation_id=self.reservation_id, actual=protos.Actual(quantities=totals), partial=True
        )
        request.ttl.FromSeconds(HOLD_S)
        return not tollgate.Commit(request, timeout=RESERVE_TIMEOUT_S).exhausted

    def hold_more(self, quantities: dict[str, float]) -> bool:
        """Holds more, if all of it fits. Returns whether it did."""
        request = protos.ExtendRequest(
            reservation_id=self.reservation_id, add=protos.Actual(quantities=quantities), request_id=str(uuid.uuid4())
        )
        return tollgate.Extend(request, timeout=RESERVE_TIMEOUT_S).extended

    def end(self, totals: dict[str, float]) -> None:
        """Counts what was used in all, and gives the rest of the hold back."""
        actual = protos.Actual(quantities=totals)
        settle(tollgate.Commit, protos.CommitRequest(reservation_id=self.reservation_id, actual=actual))


def metered(user_id: str, prompt_tokens: int, words: Iterator[str], hold_tokens: int = 200) -> Iterator[str]:
    """Passes words on for as long as the user's plan has room. Each is a token here."""
    event = protos.Event(
        name="llm.tokens", quantities={"prompt_tokens": prompt_tokens, "completion_tokens": hold_tokens}
    )
    stream = Stream(user_id, event)
    totals = {"prompt_tokens": prompt_tokens, "completion_tokens": 0}
    counted_at = time.monotonic()
    try:
        for word in words:
            totals["completion_tokens"] += 1
            yield word
            if totals["completion_tokens"] == hold_tokens:
                # The answer is longer than what is held. Hold more before it goes on, or stop here.
                if not stream.hold_more({"completion_tokens": 200}):
                    return
                hold_tokens += 200
            if time.monotonic() - counted_at >= COUNT_EVERY_S:
                counted_at = time.monotonic()
                if not stream.count(totals):
                    return
    finally:
        # Also if the model has failed or the user has closed the stream: the tokens until then were spent.
        stream.end(totals)


if __name__ == "__main__":
    user = f"user-{uuid.uuid4().hex[:8]}"
    endless = iter(lambda: "word", None)
    streamed = sum(1 for _ in metered(user, 20, endless))
    print(f"{streamed} words, and then the plan had no room for more")
    for limit in tollgate.GetUsage(protos.GetUsageRequest(user_id=user), timeout=2).limits:
        print(f"{limit.label}: {limit.used:g} of {limit.quota:g} {limit.unit}, {limit.held:g} held")
