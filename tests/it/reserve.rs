//! Reserve, commit and release: the rows of SPEC section 5 about them.

use crate::scenario::check;

/// One hard group per kind: tokens per month, chats per day, a soft one, an unlimited one.
pub const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - id: tokens
        label: Tokens
        unit: tokens
        quota: 1000
        match:
          - { event: llm.tokens, measure: { prompt_tokens: 1, completion_tokens: 1 } }
          - { event: llm.tokens }
      - id: chats
        unit: count
        period: daily
        quota: 3
        match: [{ event: llm.tokens, measure: events }]
      - id: soft
        unit: tokens
        hard: false
        quota: 500
        match: [{ event: llm.tokens, measure: [{ name: prompt_tokens, default: 0 }, { name: quantity, default: 0 }] }]
      - id: all
        unit: count
        quota: unlimited
        match: [{ event: '*', measure: events }]
      - id: none
        unit: count
        quota: 0
        match: [{ event: forbidden }]
";

#[tokio::test]
async fn a_hold_is_kept_until_it_is_settled() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u llm.tokens prompt_tokens=100 completion_tokens=200 as=A => allowed matched HELD !replayed expires-in=60s
        usage u => groups=tokens,chats,soft,all,none tokens.held=300 tokens.used=0 tokens.remaining=700 chats.held=1 in-force=free
        commit A completion_tokens=50 => COMMITTED tokens.used=150 tokens.held=0 tokens.requested=150 chats.used=1 !overage !late !replayed
        usage u => tokens.used=150 tokens.held=0 tokens.remaining=850 chats.used=1 chats.remaining=2 no-subscription
        reserve u llm.tokens 100 as=B => allowed groups=tokens,chats,soft,all
        release B => RELEASED !replayed tokens.held=0 tokens.used=150
        release B => RELEASED replayed tokens.held=0
        usage u => tokens.used=150 tokens.held=0 chats.used=1
    ",
    )
    .await;
}
