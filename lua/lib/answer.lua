-- answer: what scripts answer. Needs base, formats, each, windows, record.
--
-- A row says where a group stands. It names the group by its place in the plan whose digest is in the answer: the service has the words.
-- What only some answers say stands in columns after the rows.

-- One vocabulary for outcomes.
local DONE, LIMIT_REACHED, UNMATCHED, NO_SUBSCRIPTION = 1, 2, 3, 4

-- `columns` of the answer.
local WITH_SHORTFALLS, WITH_CLOSINGS, WITH_ROW_QUOTAS, WITH_BEFORES = 1, 2, 4, 8

local ROW_WIDTH, CLOSING_WIDTH = 5, 2

-- The values of an answer's rows, until they are packed.
local row_numbers = {}

-- An answer whose fields are those of `named`. `rows` are values, five for each of `count` groups; `columns` are bytes.
local function answer(named, count, rows, columns, column_bytes)
  return pack_struct(format_of(ROW_FORMAT, count, ANSWER_FORMAT), ANSWER_KIND, named.outcome or DONE,
    named.state or NO_STATE, named.replayed and 1 or 0, named.overage and 1 or 0, named.late and 1 or 0, named.exhausted and 1 or 0, columns or 0, named.suffix or ZEROS_6, named.plan or ZEROS_8, named.deadline or 0,
    named.retry_after_ms or -1, count, unpack(rows or row_numbers, 1, count * ROW_WIDTH)) .. (column_bytes or '')
end

-- The rows of claims that were just assessed, and the columns of what their groups say besides.
local function rows_of(claims)
  local rows, at = row_numbers, 1
  for i = 1, #claims do
    local claim = claims[i]
    local window = claim.window
    rows[at], rows[at + 1], rows[at + 2], rows[at + 3], rows[at + 4] = claim.place, claim.span, window.used, window.held, claim.charge
    at = at + ROW_WIDTH
  end
  return rows
end

local function answer_assessed(named, claims)
  if claims[1] and claims[1].own_quota then
    return answer(named, #claims, rows_of(claims), WITH_ROW_QUOTAS, column_of(claims, QUOTA_FORMAT, 'own_quota'))
  end
  return answer(named, #claims, rows_of(claims))
end

-- The column of closings. `window_of` has looked for the window of each claim.
local function closings_of(claims, unapplied)
  local closings = {}
  for i = 1, #claims do
    closings[2 * i - 1], closings[2 * i] = unapplied and claims[i][unapplied] or 0, claims[i].window and 0 or 1
  end
  return write_flat(CLOSING_FORMAT, CLOSING_WIDTH, #claims, closings)
end

-- The answer about claims that are remembered. Their windows may be kept no longer. Each asks for its charge, or for that of `charges`.
-- `unapplied` names what of the claims could not be applied.
local function answer_remembered(led, named, claims, charges, unapplied)
  local rows, columns, column_bytes, at = row_numbers, 0, '', 1
  for i = 1, #claims do
    local claim = claims[i]
    local window = window_of(led, claim)
    rows[at], rows[at + 1], rows[at + 4] = claim.place, claim.span, charges and charges[i] or claim.charge
    if window then
      rows[at + 2], rows[at + 3] = window.used, window.held
    else
      rows[at + 2], rows[at + 3], columns = 0, 0, WITH_CLOSINGS
    end
    if unapplied and claim[unapplied] > 0 then columns = WITH_CLOSINGS end
    at = at + ROW_WIDTH
  end
  if columns > 0 then column_bytes = closings_of(claims, unapplied) end
  if claims[1] and claims[1].own_quota then
    columns, column_bytes = columns + WITH_ROW_QUOTAS, column_bytes .. column_of(claims, QUOTA_FORMAT, 'own_quota')
  end
  return answer(named, #claims, rows, columns, column_bytes)
end

-- The answer about a tracked event or a refund, from what is remembered of it.
local function tracked(led, record, replayed)
  local named = { replayed = replayed, suffix = record.suffix, plan = record.plan }
  return answer_remembered(led, named, record.claims, nil, 'committed')
end

-- The answer about a reservation that was committed otherwise.
local function committed_otherwise(record)
  local parts = { write_committed_otherwise({ kind = OTHERWISE_KIND, plan = record.plan, claims = #record.claims }) }
  for i, claim in ipairs(record.claims) do
    parts[i + 1] = pack_struct(COMMITTED_CLAIM_FORMAT, claim.place, claim.committed)
  end
  return concat(parts)
end
