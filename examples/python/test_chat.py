"""Tests of chat.py against a real Tollgate that fails open, with models that behave as models do.

tests/it/example.rs starts both, and says here where: METER_ADDRESS, and by REDIS_PID which process is the Redis, to be stopped.
"""

import os
import signal
import time
import unittest
import uuid

import chat

PATIENCE = 60


def model(*pieces):
    """A model that streams these words, reports this usage, or fails so."""

    def call(prompt, max_tokens):
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield ("", piece) if isinstance(piece, dict) else (f"{piece} ", None)

    return call


def standing(user):
    """What a user has used and holds of the tokens and of the chats."""
    usage = chat.tollgate.GetUsage(chat.protos.GetUsageRequest(user_id=user), timeout=PATIENCE)
    return {limit.limit_group_id: (limit.used, limit.held) for limit in usage.limits}


class Chat(unittest.TestCase):
    def setUp(self):
        self.user = f"chat-{uuid.uuid4()}"
        self.addCleanup(setattr, chat, "call_model", chat.call_model)
        # A busy machine is no failure.
        chat.RESERVE_TIMEOUT_S = chat.SETTLE_TIMEOUT_S = PATIENCE

    def test_an_answer_is_charged_as_the_model_reports(self):
        chat.call_model = model("one", "two", {"prompt_tokens": 7, "completion_tokens": 30})
        self.assertEqual("".join(chat.chat(self.user, "a b c")), "one two ")
        self.assertEqual(standing(self.user)["tokens_total"], (37, 0))
        self.assertEqual(standing(self.user)["chats"], (1, 0))

    def test_a_stream_that_is_closed_is_charged_as_far_as_it_came(self):
        chat.call_model = model("one", "two", "three", {"prompt_tokens": 3, "completion_tokens": 3})
        stream = chat.chat(self.user, "a b c")
        self.assertEqual([next(stream), next(stream)], ["one ", "two "])
        self.assertGreater(standing(self.user)["tokens_total"][1], 0, "held meanwhile")
        stream.close()
        self.assertEqual(standing(self.user)["tokens_total"], (5, 0))

    def test_a_model_that_fails_amid_its_answer_is_charged_as_far_as_it_came(self):
        chat.call_model = model("one", ConnectionError("the provider hung up"))
        with self.assertRaises(ConnectionError):
            list(chat.chat(self.user, "a b c"))
        self.assertEqual(standing(self.user)["tokens_total"], (4, 0))

    def test_a_model_that_fails_at_once_costs_nothing(self):
        chat.call_model = model(ConnectionError("the provider is away"))
        with self.assertRaises(ConnectionError):
            list(chat.chat(self.user, "a b c"))
        self.assertEqual(standing(self.user), {"tokens_total": (0, 0), "chats": (0, 0), "images_total": (0, 0)})

    def test_a_denial_says_when_to_come_back_only_if_waiting_helps(self):
        with self.assertRaises(chat.OverLimit) as denied:
            next(chat.chat(self.user, "a b c", max_tokens=200_000))
        self.assertIsNone(denied.exception.retry_after)
        self.assertIn("Tokens (short of ", str(denied.exception))
        self.assertIn("waiting does not help", str(denied.exception))
        self.assertNotIn("try again", str(denied.exception))

        for _ in range(10):
            list(chat.chat(self.user, "a b c"))
        with self.assertRaises(chat.OverLimit) as denied:
            next(chat.chat(self.user, "a b c"))
        self.assertGreater(denied.exception.retry_after, 0)
        self.assertRegex(str(denied.exception), r"try again in [1-9]\d* s$")

    def test_a_wait_of_less_than_a_second_is_not_none(self):
        soon = chat.protos.ReserveResponse()
        soon.retry_after.nanos = 1
        self.assertIn("try again in 1 s", str(chat.OverLimit(soon)))

    def test_what_is_used_without_a_hold_is_tracked_later_and_once(self):
        chat.call_model = model("one", "two", {"prompt_tokens": 7, "completion_tokens": 30})
        chat.SETTLE_TIMEOUT_S = 0.5
        redis = int(os.environ["REDIS_PID"])
        os.kill(redis, signal.SIGSTOP)
        try:
            self.assertEqual("".join(chat.chat(self.user, "a b c")), "one two ")
            self.assertEqual(len(chat.owed), 1, "nobody could be told")
            stream = chat.chat(self.user, "a b c")
            next(stream)
            stream.close()
            self.assertEqual(len(chat.owed), 2, "neither of a stream that was closed")
        finally:
            os.kill(redis, signal.SIGCONT)
        chat.SETTLE_TIMEOUT_S = PATIENCE
        deadline = time.monotonic() + PATIENCE
        while chat.owed:
            self.assertLess(time.monotonic(), deadline, "Tollgate answers again")
            chat.settle_owed()
        # Whether or not Redis had got the reservations, they count for nothing.
        used = {group: used for group, (used, _) in standing(self.user).items()}
        self.assertEqual(used, {"tokens_total": 37 + 4, "chats": 2, "images_total": 0})

    def test_what_can_never_be_settled_is_told_and_holds_nothing_up(self):
        unknown = chat.protos.CommitRequest(reservation_id="AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAdkZWZhdWx0BgBub2JvZHk")
        with self.assertLogs(level="ERROR") as logged:
            chat.settle(chat.tollgate.Commit, unknown)
        self.assertIn("not settled: the reservation is unknown", logged.output[0])
        self.assertFalse(chat.owed)


if __name__ == "__main__":
    unittest.main()
