"""Reserve, call the model, commit; release if it fails. Needs: pip install grpcio grpcio-tools

Run it against a Tollgate on this machine: python examples/python/chat.py
"""

import pathlib
import sys
import uuid

import grpc

# The stubs are made from the proto file at import; a build step with grpcio-tools gives the same ones.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "proto"))
protos, services = grpc.protos_and_services("tollgate/v1/tollgate.proto")

channel = grpc.insecure_channel("localhost:50051")
tollgate = services.MeteringServiceStub(channel)


class OverLimit(Exception):
    """The plan has no room for the call."""


def call_model(prompt: str, max_tokens: int) -> tuple[str, int, int]:
    """Stands for your provider: the answer, and the prompt and completion tokens of its usage report."""
    return f"An answer to {prompt!r}", len(prompt.split()), min(12, max_tokens)


def chat(user_id: str, prompt: str, max_tokens: int = 500) -> str:
    event = protos.Event(
        name="llm.tokens",
        quantities={"prompt_tokens": 2 * len(prompt.split()), "completion_tokens": max_tokens},
        metadata={"provider": "openai", "model": "gpt-4o"},
    )
    # One id per attempt of the user, not per retry: a retry must find the first reservation.
    held = tollgate.Reserve(
        protos.ReserveRequest(user_id=user_id, event=event, request_id=str(uuid.uuid4())), timeout=2
    )
    if not held.allowed:
        full = ", ".join(f"{limit.label} (short of {limit.shortfall:g} {limit.unit})" for limit in held.limits if limit.shortfall)
        raise OverLimit(f"no room in: {full or 'the plan'}; try again in {held.retry_after.seconds} s")
    try:
        answer, prompt_tokens, completion_tokens = call_model(prompt, max_tokens)
    except Exception:
        tollgate.Release(protos.ReleaseRequest(reservation_id=held.reservation_id, reason="model failed"), timeout=2)
        raise
    used = protos.Actual(quantities={"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens})
    # Safe to repeat until it is answered: the same charges are counted once.
    tollgate.Commit(protos.CommitRequest(reservation_id=held.reservation_id, actual=used), timeout=2)
    return answer


if __name__ == "__main__":
    user = f"user-{uuid.uuid4().hex[:8]}"
    for turn in range(12):
        try:
            print(turn + 1, chat(user, "What does a toll gate do?"))
        except OverLimit as denied:
            print(turn + 1, "denied:", denied)
    usage = tollgate.GetUsage(protos.GetUsageRequest(user_id=user), timeout=2)
    for limit in usage.limits:
        quota = "unlimited" if limit.unlimited else f"{limit.quota:g}"
        print(f"{limit.label}: {limit.used:g} of {quota} {limit.unit}")
