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

# Makes the stubs from the proto file at import. A build step with grpcio-tools gives the same ones.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "proto"))
protos, services = grpc.protos_and_services("tollgate/v1/tollgate.proto")

# A call that ends in UNAVAILABLE is repeated as it is. Its ids make that safe.
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

# How long to wait for an answer, in seconds. A user waits for Reserve; nobody waits for a settlement.
RESERVE_TIMEOUT_S = 2
SETTLE_TIMEOUT_S = 2

# Settlements that Tollgate has not answered yet. They are lost when this process ends: a long-running service keeps them in a durable
# queue.
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
    """Sends a settlement now. If nobody answers, it is sent again before the next chat."""
    owed.append((call, request))
    settle_owed()


def settle_owed() -> None:
    """Sends all settlements that are owed, until one gets no answer. Safe to repeat: the same ids count once."""
    while owed:
        call, request = owed[0]
        try:
            call(request, timeout=SETTLE_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return
            # A retry does not help. An example is RESERVATION_NOT_FOUND: the commit came far too late.
            logging.error("not settled: %s", error.details())
        owed.popleft()


@contextlib.contextmanager
def reserved(user_id: str, event, ttl_s: int = 60) -> Iterator[dict[str, float]]:
    """Holds the upper bound of an event, and settles it when the block ends, normally or by an exception.

    The block writes the quantities that were really used into the dictionary. An empty one means that nothing was used.
    """
    # One id for each attempt of the user, not for each retry: a retry must find the first reservation.
    request_id = str(uuid.uuid4())
    asked = protos.ReserveRequest(user_id=user_id, event=event, request_id=request_id)
    asked.ttl.FromSeconds(ttl_s)
    held = tollgate.Reserve(asked, timeout=RESERVE_TIMEOUT_S)
    if not held.allowed:
        raise OverLimit(held)
    used: dict[str, float] = {}
    try:
        yield used
    finally:
        # Also if the model has failed or the user has closed the stream: the tokens until then were spent.
        if held.degraded:
            # Allowed without a hold, because Redis did not answer. There is nothing to commit, so track the usage. Use another id:
            # Redis may have got the reservation after all, and then its deadline gives it back.
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
    """Stands for your provider. It streams pieces of its answer and reports the usage with the last one."""
    answer = f"An answer to {prompt!r}".split()[:max_tokens]
    for word in answer:
        yield f"{word} ", None
    yield "", {"prompt_tokens": count_tokens(prompt), "completion_tokens": len(answer)}


def count_tokens(text: str) -> int:
    """Stands for your model's tokenizer."""
    return len(text.split())


def chat(user_id: str, prompt: str, max_tokens: int = 500) -> Iterator[str]:
    """Streams an answer. A user who closes it early is charged for the part that was streamed."""
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
