-- report: a limit group's standing, as the answers carry it. Needs base, ledger, record.
--
-- A row is { id, label, unit, quota or -1, hard, start, end, used, held, requested, shortfall, closed, unapplied }.

local function claim_row(led, claim, requested, unapplied)
  local w = kept_window(led, claim[C_ID], claim[C_WINDOW])
  return {
    claim[C_ID], claim[C_LABEL], claim[C_UNIT], claim[C_QUOTA], claim[C_HARD], claim[C_START], claim[C_END],
    w and w[USED] or 0, w and w[HELD] or 0, requested, 0, not w, unapplied or 0,
  }
end

local function claim_rows(led, claims, position)
  local rows = {}
  for i = 1, #claims do rows[i] = claim_row(led, claims[i], claims[i][position]) end
  return rows
end

local function group_row(group, w, requested, shortfall)
  return {
    group[G_ID], group[G_LABEL], group[G_UNIT], group[G_QUOTA], group[G_HARD], w[START], w[END],
    w[USED], w[HELD], requested, shortfall or 0, false, 0,
  }
end
