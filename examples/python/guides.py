"""What the guides show beside chat.py: failing open in the client, a counter and its replacement, payment webhooks.

test_guides.py runs it. `docs/guides` quotes it.
"""

import time
from collections.abc import Callable, Iterator

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

import chat
from chat import channel, protos, services, tollgate

# --- docs/guides/fail-open.md ---


def reserve_or_go_on(request):
    """Reserves. Where Tollgate cannot be reached, lets the call go on without a hold."""
    try:
        return tollgate.Reserve(request, timeout=chat.RESERVE_TIMEOUT_S)
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise
        # The same answer as that of a server with --fail-open: the caller tracks what was used, later.
        return protos.ReserveResponse(allowed=True, degraded=True)


# --- docs/guides/from-a-counter.md ---

DAILY_TOKENS = 100_000


def chat_with_a_counter(redis, user_id: str, prompt: str) -> Iterator[str]:
    """Before: a counter for each user and day, checked before the call and raised after it."""
    key = f"tokens:{user_id}:{time.strftime('%Y-%m-%d')}"
    if int(redis.get(key) or 0) >= DAILY_TOKENS:
        raise RuntimeError("over the limit")
    tokens = 0
    for text, report in chat.call_model(prompt, 500):
        tokens = sum(report.values()) if report else tokens
        yield text
    redis.incrby(key, int(tokens))
    redis.expire(key, 2 * 24 * 3600)


# --- docs/guides/plan-changes.md ---

subscriptions = services.SubscriptionServiceStub(channel)

# From what your payment provider sells to the plans of the catalog.
PLANS = {"price_pro_monthly": "pro", "price_team_monthly": "team"}


def on_payment_event(user_id: str, fetch_subscription: Callable[[str], dict | None]) -> None:
    """Puts a user on the plan that is paid for now. It does not matter which event came, how often, or in which order."""
    # Not the copy in the event: events may come late, twice and out of order.
    paid = fetch_subscription(user_id)
    if paid is None or paid["status"] not in ("active", "trialing", "past_due"):
        cancel(user_id)
        return
    request = protos.UpsertSubscriptionRequest(
        user_id=user_id,
        plan_id=PLANS[paid["price"]],
        # Limits start anew when the next invoice is due.
        cycle_anchor=Timestamp(seconds=paid["billing_cycle_anchor"]),
        end_time=Timestamp(seconds=paid["cancel_at"]) if paid["cancel_at"] else None,
        # Removes an end that was stored before.
        clear_end_time=not paid["cancel_at"],
    )
    subscriptions.UpsertSubscription(request, timeout=5)


def cancel(user_id: str) -> None:
    """Ends a user's subscription now. A user who has none, or whose has ended, stays as they are."""
    try:
        subscriptions.CancelSubscription(protos.CancelSubscriptionRequest(user_id=user_id), timeout=5)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise


# --- docs/guides/llm-chat.md ---


def run_agent(user_id: str, steps: list[Callable[[], float]], budget_cents: float) -> float:
    """Runs the steps of an agent, each of which returns its cost, within a budget that is held from the start."""
    event = protos.Event(name="agent.run", quantities={"quantity": budget_cents})
    spent = 0.0
    with chat.reserved(user_id, event, ttl_s=3600) as used:
        for step in steps:
            if spent >= budget_cents:
                break
            spent += step()
            used["quantity"] = spent
    return spent
