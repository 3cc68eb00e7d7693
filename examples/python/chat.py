"""Reserve, stream from the model, commit what was used. Needs: pip install -r examples/python/requirements.txt

Run it against a Tollgate on this machine: python examples/python/chat.py
Elsewhere: METER_ADDRESS=tollgate:50051 python examples/python/chat.py
"""

import collections
import contextlib
import json
import logging
import math
import os
import pathlib
import sys
import uuid
from collections.abc import Callable, Iterator

import grpc

# The stubs are made from the proto file at import; a build step with grpcio-tools gives the same ones.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "proto"))
protos, services = grpc.protos_and_services("tollgate/v1/tollgate.proto")

# A call that ends in UNAVAILABLE is repeated as it is: its ids make that safe.
RETRIES = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
channel = grpc.insecure_channel(
    os.environ.get("METER_ADDRESS", "localhost:50051"),
    options=[
        ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": RETRIES}]})),
        ("grpc.keepalive_time_ms", 30_000),
    ],
)
tollgate = services.MeteringServiceStub(channel)

# How long to wait for an answer, in seconds: a user waits for the first, nobody for the other.
RESERVE_TIMEOUT_S = 2
SETTLE_TIMEOUT_S = 2

# What was used and is not settled yet, because Tollgate did not answer. It is lost with this process: a service that runs for long keeps
# it in a queue that is not.
owed: collections.deque[tuple[Callable, object]] = collections.deque()


class OverLimit(Exception):
    """The plan has no room for the call."""

    def __init__(self, denial):
        short = [f"{limit.label} (short of {limit.shortfall:g} {limit.unit})" for limit in denial.limits if limit.shortfall]
        what = f"no room in: {', '.join(short) or 'the plan'}"
        if denial.HasField("retry_after"):
            self.retry_after = denial.retry_after.seconds + denial.retry_after.nanos / 1e9
            super().__init__(f"{what}; try again in {math.ceil(self.retry_after)} s")
        else:
            # Absent: the request is larger than the quota, or the quota never comes back.
            self.retry_after = None
            super().__init__(f"{what}; waiting does not help")


def settle(call: Callable, request) -> None:
    """Sends what settles a reservation, now or, where nobody answers, with the next chat."""
    owed.append((call, request))
    settle_owed()


def settle_owed() -> None:
    """Sends all that is owed, as far as it is answered. Safe to repeat: the same ids are counted once."""
    while owed:
        call, request = owed[0]
        try:
            call(request, timeout=SETTLE_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return
            # To repeat it does not help. Such as RESERVATION_NOT_FOUND: it came far too late.
            logging.error("not settled: %s", error.details())
        owed.popleft()


@contextlib.contextmanager
def reserved(user_id: str, event) -> Iterator[dict[str, float]]:
    """Holds what an event may cost at most, and settles it when the block ends, however that comes about.

    The block writes what was really used into the dictionary. Nothing in it means that nothing was used.
    """
    # One id per attempt of the user, not per retry: a retry must find the first reservation.
    request_id = str(uuid.uuid4())
    asked = protos.ReserveRequest(user_id=user_id, event=event, request_id=request_id)
    held = tollgate.Reserve(asked, timeout=RESERVE_TIMEOUT_S)
    if not held.allowed:
        raise OverLimit(held)
    used: dict[str, float] = {}
    try:
        yield used
    finally:
        # Also where the model failed or the user has closed the stream: what was streamed until then has been paid for.
        if held.degraded:
            # Allowed without a hold, as Tollgate's Redis is away: there is nothing to commit, so what was used is tracked. The id is
            # another one: perhaps Redis has got the reservation after all, which comes back by itself.
            if used:
                event = protos.Event(name=event.name, quantities=used, metadata=event.metadata)
                tracked = protos.TrackRequest(user_id=user_id, event=event, request_id=f"{request_id}/used")
                settle(tollgate.Track, tracked)
        elif used:
            actual = protos.Actual(quantities=used)
            settle(tollgate.Commit, protos.CommitRequest(reservation_id=held.reservation_id, actual=actual))
        else:
            settle(tollgate.Release, protos.ReleaseRequest(reservation_id=held.reservation_id, reason="nothing was used"))


def call_model(prompt: str, max_tokens: int) -> Iterator[tuple[str, dict[str, float] | None]]:
    """Stands for your provider, which streams pieces of its answer and reports the usage with the last one."""
    answer = f"An answer to {prompt!r}".split()[:max_tokens]
    for word in answer:
        yield f"{word} ", None
    yield "", {"prompt_tokens": count_tokens(prompt), "completion_tokens": len(answer)}


def count_tokens(text: str) -> int:
    """Stands for your model's tokenizer."""
    return len(text.split())


def chat(user_id: str, prompt: str, max_tokens: int = 500) -> Iterator[str]:
    """Streams an answer. Whoever closes it early is charged for what was streamed."""
    settle_owed()
    event = protos.Event(
        name="llm.tokens",
        quantities={"prompt_tokens": 2 * count_tokens(prompt), "completion_tokens": max_tokens},
        metadata={"provider": "openai", "model": "gpt-4o"},
    )
    with reserved(user_id, event) as used:
        streamed = 0
        for text, report in call_model(prompt, max_tokens):
            streamed += count_tokens(text)
            # An estimate, until the provider has reported.
            used.update(report or {"prompt_tokens": count_tokens(prompt), "completion_tokens": streamed})
            yield text


if __name__ == "__main__":
    user = f"user-{uuid.uuid4().hex[:8]}"
    for turn in range(12):
        try:
            print(turn + 1, "".join(chat(user, "What does a toll gate do?")))
        except OverLimit as denied:
            print(turn + 1, "denied:", denied)
    usage = tollgate.GetUsage(protos.GetUsageRequest(user_id=user), timeout=2)
    for limit in usage.limits:
        quota = "unlimited" if limit.unlimited else f"{limit.quota:g}"
        print(f"{limit.label}: {limit.used:g} of {quota} {limit.unit}")
