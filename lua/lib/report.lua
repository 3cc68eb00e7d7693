-- report: a limit group's standing, as the answers carry it, and the answers that do. Needs base, ledger, record.
--
-- A row is the window's span, what ROW_FORMAT says (used, held, requested, shortfall, unapplied, whether the window is closed), and the
-- group's terms, as the catalog's compiler wrote them. Rows stand one after the other.

local ROW_FORMAT = '<c13I7I7I7I7I7B'

-- The beginnings of { decision = [7 values] } and of others, as `pack` would write them, but without making tables.
local DECISION, COMMITTED, RELEASED, TRACKED =
  '\129\168decision\151', '\129\169committed\149', '\129\168released\147', '\129\167tracked\148'

local function span_of(w)
  return sub(w[FRAME], SPAN_FROM, SPAN_TO)
end

local function claim_row(led, claim, requested, unapplied)
  local w = kept_window(led, claim[C_ID], claim[C_WINDOW])
  return pack_struct(ROW_FORMAT, claim[C_SPAN], w and w[USED] or 0, w and w[HELD] or 0, requested, 0, unapplied or 0, w and 0 or 1)
    .. claim[C_TERMS]
end

local function claim_rows(led, claims, position)
  local rows = {}
  for i = 1, #claims do rows[i] = claim_row(led, claims[i], claims[i][position]) end
  return concat(rows)
end

local function group_row(group, w, requested, shortfall)
  return pack_struct(ROW_FORMAT, span_of(w), w[USED], w[HELD], requested, shortfall or 0, 0, 0) .. group[G_TERMS]
end

-- The answer about a reservation that was committed otherwise.
local function already_committed(claims)
  local committed = {}
  for i = 1, #claims do committed[i] = { claims[i][C_ID], claims[i][C_UNIT], claims[i][C_COMMITTED] } end
  return pack({ already_committed = committed })
end
