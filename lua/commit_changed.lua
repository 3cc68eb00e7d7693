#!lua flags=allow-oom
-- commit_changed: counts what was really used by an event whose metadata turned out otherwise than reserved, in the groups that it matches then.
--
-- KEYS: state, memory 1, memory 2, hold
-- ARGV: commit_changed_call
--       the message of the reservation's plan
-- Answers: answer, stale, fault, committed_otherwise
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin life settle subscription crossed

-- The event with these values of its metadata.
local function changed_event(record, packed)
  local name, metadata = unpack_message(record.what)
  local has_changed = false
  for key, value in pairs(unpack_message(packed)) do
    has_changed = has_changed or metadata[key] ~= value
    metadata[key] = value
  end
  return has_changed and pack(name, metadata) or record.what
end

-- Whether the call was compiled for the subscription as it is now. Its windows are counted from the anchor of that.
local function has_current_anchor(led, asked)
  local terms = led.terms
  return asked.revision == revision_of(led) and (not terms or (terms.ends > 0 and led.time >= terms.ends) == (asked.ended == 1))
end

-- The reservation's claims, by the places of their groups.
local function claims_of_places(record)
  local claims = {}
  for _, claim in ipairs(record.claims) do claims[claim.place] = claim end
  return claims
end

-- A claim on a group that the event has not matched before: in its window at this time, with nothing reserved. Nil: compile again.
local function claim_anew(led, plan, asked, group, own_quota)
  local window = has_current_anchor(led, asked) and current_window(led, plan, asked, group)
  if not window then return nil end
  return {
    place = group.place, window = window, number = window.number, span = window.span or span_of(window), charge = 0, committed = 0,
    refunded = 0, due = 0, locked = 0, own_quota = own_quota,
  }
end

-- The reservation's claims and those on groups that the event matches only now, in the order of the groups. Nil: compile again.
local function claims_of_both(led, plan, asked, record, of_places)
  local known, quotas, has_quotas, claims = claims_of_places(record), own_quotas(asked), record.claims[1].own_quota, {}
  for place, group in ipairs(plan.groups) do
    local claim = known[place]
    if not claim and of_places[place] then
      local own_quota = has_quotas and (quotas and quotas[place] or group.quota)
      claim = claim_anew(led, plan, asked, group, own_quota)
      if not claim then return nil end
    end
    claims[#claims + 1] = claim
  end
  return claims
end

-- The answer where it is committed already.
local function changed_before(led, record, of_places)
  local known = claims_of_places(record)
  for place, charge in pairs(of_places) do
    -- A group that costs nothing needs no claim.
    if charge > 0 and not known[place] then return committed_otherwise(record) end
  end
  return committed_before(led, record, by_claims(record, of_places))
end

local function commit_changed(k, a)
  local asked = read_commit_changed_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end
  local record, reason = load_reservation(led, asked)
  if not record then return fault(reason) end
  local plan = plan_of(asked.plan, ARGV[a + 2])

  local what = changed_event(record, asked.metadata)
  if not matches_of(plan, what)[1] then return fault('UNMATCHED_EVENT') end
  local charges, other = price_anew(record, plan, what, values_of(asked.quantities), asked.names_quantity == 0)
  if not charges then return other end
  local of_places = charges_by_place(plan, what, charges)

  local state, own = state_of(record, led.time), record.claims
  if state == STATE_COMMITTED then return changed_before(led, record, of_places) end
  local claims = claims_of_both(led, plan, asked, record, of_places)
  if not claims then return stale(led) end
  record.claims = claims
  charges = by_claims(record, of_places)
  failed = beyond_most(led, record, plan.groups, charges, state, false)
  if failed then return failed end

  -- All checks are done: from here on, writes.
  local late, bucket_field, bucket = state ~= STATE_HELD, nil, nil
  -- What was held is known by the claims of the reservation alone.
  record.claims = own
  if not late then bucket_field, bucket = end_hold(led, record) end
  begin_life(record)
  record.claims, record.claim_bytes, record.settled_what = claims, nil, what ~= record.what and what or ''
  local is_short = count_finally(led, record, charges, state)
  for i, claim in ipairs(claims) do claim.committed = charges[i] end
  record.settled = asked.quantities
  end_committed(led, k, asked, record, late, bucket_field, bucket)
  local named = { state = STATE_COMMITTED, overage = exceeds(record, charges), late = late, plan = record.plan }
  local answered = answer_remembered(led, named, claims, charges, is_short and 'unapplied')
  if led.used_before then return with_befores(led, answered, claims, plan) end
  return answered
end

return each(commit_changed, 4, 2)
