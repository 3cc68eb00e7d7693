"""Tests of stream.py against a real Tollgate: tests/it/example.rs says where by METER_ADDRESS."""

import itertools
import unittest
import uuid

import chat
import stream

PATIENCE = 60


def standing(user):
    """What a user has used and holds of the tokens."""
    usage = chat.tollgate.GetUsage(chat.protos.GetUsageRequest(user_id=user), timeout=PATIENCE)
    return next((limit.used, limit.held, limit.quota) for limit in usage.limits if limit.limit_group_id == "tokens_total")


class Streams(unittest.TestCase):
    def setUp(self):
        self.user = f"stream-{uuid.uuid4()}"
        # A busy machine is no failure.
        stream.RESERVE_TIMEOUT_S = chat.SETTLE_TIMEOUT_S = PATIENCE
        self.addCleanup(setattr, stream, "COUNT_EVERY_S", stream.COUNT_EVERY_S)
        stream.COUNT_EVERY_S = 0

    def test_a_stream_is_counted_while_it_goes_and_once(self):
        words = stream.metered(self.user, 20, iter(["a"] * 50))
        for _ in range(11):
            next(words)
        # The last one was passed on, and is not counted yet.
        self.assertEqual(standing(self.user)[:2], (30, 190))
        self.assertEqual(len(list(words)), 39)
        self.assertEqual(standing(self.user)[:2], (70, 0))

    def test_a_user_who_closes_a_stream_pays_for_what_came(self):
        words = stream.metered(self.user, 20, itertools.repeat("a"))
        for _ in range(5):
            next(words)
        words.close()
        self.assertEqual(standing(self.user)[:2], (25, 0))

    def test_a_longer_answer_holds_more_as_it_goes(self):
        words = list(stream.metered(self.user, 0, iter(["a"] * 450)))
        self.assertEqual(len(words), 450)
        self.assertEqual(standing(self.user)[:2], (450, 0))

    def test_a_stream_ends_where_the_plan_ends(self):
        used, _, quota = standing(self.user)
        event = chat.protos.Event(name="llm.tokens", quantities={"prompt_tokens": quota - 300, "completion_tokens": 0})
        chat.tollgate.Track(chat.protos.TrackRequest(user_id=self.user, event=event), timeout=PATIENCE)
        stream.COUNT_EVERY_S = 1000
        words = list(stream.metered(self.user, 50, itertools.repeat("a")))
        self.assertEqual(len(words), 200, "the next 200 tokens do not fit")
        self.assertEqual(standing(self.user)[:2], (quota - 50, 0))
        stream.COUNT_EVERY_S = 0
        words = list(stream.metered(self.user, 0, itertools.repeat("a"), hold_tokens=30))
        self.assertEqual(len(words), 30)
        self.assertEqual(standing(self.user)[:2], (quota - 20, 0))

    def test_a_total_that_leaves_no_room_says_so(self):
        _, _, quota = standing(self.user)
        event = chat.protos.Event(name="llm.tokens", quantities={"prompt_tokens": quota - 40, "completion_tokens": 0})
        chat.tollgate.Track(chat.protos.TrackRequest(user_id=self.user, event=event), timeout=PATIENCE)
        held = chat.protos.Event(name="llm.tokens", quantities={"prompt_tokens": 10, "completion_tokens": 30})
        one = stream.Stream(self.user, held)
        self.assertTrue(one.count({"prompt_tokens": 10, "completion_tokens": 29}))
        self.assertFalse(one.count({"prompt_tokens": 10, "completion_tokens": 30}))
        one.end({"prompt_tokens": 10, "completion_tokens": 31})
        self.assertEqual(standing(self.user)[:2], (quota + 1, 0))


if __name__ == "__main__":
    unittest.main()
