-- answer: what scripts answer. Needs base, formats, each, windows, record.
--
-- A row says where a group stands. It names the group by its place in the plan whose digest is in the answer: the service has the words.

-- One vocabulary for outcomes.
local DONE, LIMIT_REACHED, UNMATCHED, NO_SUBSCRIPTION = 1, 2, 3, 4

-- The quota of a row whose plan says it.
local AS_PLANNED = -2

local function row(place, window, requested, shortfall, quota)
  return pack_struct(ROW_FORMAT, place, window.start, window.ends, window.used, window.held, requested, shortfall, 0, 0, quota)
end

-- The row of a claim. Its window may be kept no longer.
local function claim_row(led, claim, requested, unapplied)
  local window = kept_window(led, claim.window)
  return pack_struct(ROW_FORMAT, claim.group, claim.start, claim.ends, window and window.used or 0, window and window.held or 0,
    requested, 0, unapplied, window and 0 or 1, claim.quota or AS_PLANNED)
end

local function claim_rows(led, claims)
  local rows = {}
  for i = 1, #claims do rows[i] = claim_row(led, claims[i], claims[i].charge, 0) end
  return rows
end

-- An answer whose fields are those of `named`, and its rows.
local function answer(named, rows)
  return pack_struct(ANSWER_FORMAT, ANSWER_KIND, named.outcome or DONE, named.state or NO_STATE, named.replayed and 1 or 0,
    named.overage and 1 or 0, named.late and 1 or 0, named.suffix or ZEROS_6, named.plan or ZEROS_8, named.deadline or 0,
    named.retry_after_ms or -1, #rows) .. concat(rows)
end

-- The answer about a tracked event or a refund, from what is remembered of it.
local function tracked(led, record, replayed)
  local rows = {}
  for i, claim in ipairs(record.claims) do rows[i] = claim_row(led, claim, claim.charge, claim.committed) end
  return answer({ replayed = replayed, suffix = record.suffix, plan = record.plan }, rows)
end

-- The answer about a reservation that was committed otherwise.
local function committed_otherwise(record)
  local parts = { write_committed_otherwise({ kind = OTHERWISE_KIND, plan = record.plan, claims = #record.claims }) }
  for i, claim in ipairs(record.claims) do
    parts[i + 1] = pack_struct(COMMITTED_CLAIM_FORMAT, claim.group, claim.committed)
  end
  return concat(parts)
end
