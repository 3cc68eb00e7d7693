"""Tests of guides.py against a real Tollgate. tests/it/example.rs starts it, and says where by METER_ADDRESS."""

import time
import unittest
import uuid

import chat
import guides
from chat import protos

PATIENCE = 60


class Redis:
    """As much of a Redis client as the counter of the guide uses."""

    def __init__(self):
        self.values = {}

    def get(self, key):
        return self.values.get(key)

    def incrby(self, key, amount):
        self.values[key] = self.values.get(key, 0) + amount

    def expire(self, key, seconds):
        pass


def model(*pieces):
    def call(prompt, max_tokens):
        for piece in pieces:
            yield ("", piece) if isinstance(piece, dict) else (f"{piece} ", None)

    return call


def standing(user):
    usage = chat.tollgate.GetUsage(protos.GetUsageRequest(user_id=user), timeout=PATIENCE)
    return {limit.limit_group_id: (limit.used, limit.held) for limit in usage.limits}


def subscription(user):
    return guides.subscriptions.GetSubscription(protos.GetSubscriptionRequest(user_id=user), timeout=PATIENCE).subscription


class Guides(unittest.TestCase):
    def setUp(self):
        self.user = f"guides-{uuid.uuid4()}"
        self.addCleanup(setattr, chat, "call_model", chat.call_model)
        chat.RESERVE_TIMEOUT_S = chat.SETTLE_TIMEOUT_S = PATIENCE

    def test_a_client_that_cannot_reach_tollgate_goes_on_without_a_hold(self):
        class Away:
            def Reserve(self, request, timeout):
                error = guides.grpc.RpcError()
                error.code = lambda: guides.grpc.StatusCode.UNAVAILABLE
                raise error

        request = protos.ReserveRequest(user_id=self.user, event=protos.Event(name="llm.tokens", quantity=5))
        held = guides.reserve_or_go_on(request)
        self.assertTrue(held.allowed and held.reservation_id)
        self.addCleanup(setattr, guides, "tollgate", guides.tollgate)
        guides.tollgate = Away()
        held = guides.reserve_or_go_on(request)
        self.assertTrue(held.allowed and held.degraded and not held.reservation_id)

    def test_other_errors_are_not_taken_for_an_outage(self):
        with self.assertRaises(guides.grpc.RpcError):
            guides.reserve_or_go_on(protos.ReserveRequest(user_id="", event=protos.Event(name="llm.tokens", quantity=5)))

    def test_two_calls_at_once_pass_the_counter_and_not_tollgate(self):
        chat.call_model = model("one", {"prompt_tokens": 40_000, "completion_tokens": 40_000})
        redis = Redis()
        redis.incrby(f"tokens:{self.user}:{time.strftime('%Y-%m-%d')}", 50_000)
        streams = [guides.chat_with_a_counter(redis, self.user, "a b") for _ in range(2)]
        for stream in streams:
            next(stream)
        for stream in streams:
            list(stream)
        self.assertGreater(next(iter(redis.values.values())), guides.DAILY_TOKENS)

        prompt = "word " * 30_000
        first, second = (chat.chat(self.user, prompt) for _ in range(2))
        next(first)
        with self.assertRaises(chat.OverLimit):
            next(second)
        list(first)
        self.assertEqual(standing(self.user)["tokens_total"], (80_000, 0))

    def test_payment_events_leave_what_is_paid_for_whatever_their_order(self):
        paid = {"status": "active", "price": "price_pro_monthly", "billing_cycle_anchor": 1_790_000_000, "cancel_at": None}
        for _ in range(2):
            guides.on_payment_event(self.user, lambda user: paid)
        stored = subscription(self.user)
        self.assertEqual((stored.plan_id, stored.cycle_anchor.seconds), ("pro", 1_790_000_000))
        self.assertFalse(stored.HasField("end_time"))

        ends = int(time.time()) + 86_400
        guides.on_payment_event(self.user, lambda user: paid | {"cancel_at": ends})
        self.assertEqual(subscription(self.user).end_time.seconds, ends)
        guides.on_payment_event(self.user, lambda user: paid)
        self.assertFalse(subscription(self.user).HasField("end_time"))

        for gone in (None, paid | {"status": "canceled"}):
            guides.on_payment_event(self.user, lambda user, gone=gone: gone)
            self.assertTrue(subscription(self.user).HasField("end_time"))
        guides.on_payment_event(f"{self.user}-new", lambda user: None)

    def test_an_agent_spends_its_budget_at_most_and_is_charged_for_its_steps(self):
        guides.subscriptions.UpsertSubscription(protos.UpsertSubscriptionRequest(user_id=self.user, plan_id="pro"))
        seen = []

        def step():
            seen.append(standing(self.user)["spend"])
            return 20.5

        self.assertEqual(guides.run_agent(self.user, [step] * 5, 50), 61.5)
        self.assertEqual(seen, [(0, 50)] * 3)
        self.assertEqual(standing(self.user)["spend"], (61.5, 0))

        def fails():
            raise ConnectionError("the provider is away")

        with self.assertRaises(ConnectionError):
            guides.run_agent(self.user, [step, fails], 50)
        self.assertEqual(standing(self.user)["spend"], (82, 0))
        with self.assertRaises(chat.OverLimit):
            guides.run_agent(self.user, [step], 1_950)


if __name__ == "__main__":
    unittest.main()
