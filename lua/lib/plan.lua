-- plan: a compiled plan, as its message says it. Needs base.
--
-- A message is [id, on_plan_change, names, schedules, groups], and then the name of the time zone, if that is not UTC: only the service reads it. A
-- group is [id, unit, schedule, quota, hard, label, rules], and then its
-- thresholds, if it has any, of which scripts only know that they are there. A rule is
-- [kind, pattern, conditions, measure], and then the parts of the measure, if it has any. Kind 0 is any name, 1 this name, 2 names that start
-- with the pattern (which ends in a dot). A condition is [key, exact values as a set, prefixes], and then patterns, if there are any: lists of
-- the pieces around their stars. Measures and their parts are those of price.

-- What messages decode to, by their digest. Calls of all users of a plan share it, and no script changes it.
local plans, plan_bytes = {}, 0

local function group_of(place, message, schedules)
  local schedule = schedules[message[3]]
  local rules = {}
  for i, rule in ipairs(message[7]) do
    local parts = rule[5]
    if parts then rule[4].parts = parts end
    rules[i] = { kind = rule[1], pattern = rule[2], conditions = rule[3], measure = rule[4], has_parts = parts and true }
  end
  return {
    place = place, id = message[1], unit = message[2], max_units = MAX_UNITS[message[2]], schedule = message[3], period = schedule[1], quota = message[4],
    hard = message[5], rules = rules, has_thresholds = message[8] and true,
  }
end

-- The plan with this digest; nil where neither the message came along nor an earlier call has brought it.
local function plan_of(digest, message)
  local plan = plans[digest]
  if plan or message == '' then return plan end
  local id, change, names, schedules, groups = unpack(unpack_message(message))
  plan = { digest = digest, id = id, change = change, names = names, groups = {}, matches = {}, match_bytes = 0 }
  for place, message_of_group in ipairs(groups) do
    local group = group_of(place, message_of_group, schedules)
    plan.groups[place], plan.has_thresholds = group, plan.has_thresholds or group.has_thresholds
  end
  if plan_bytes > MOST_REMEMBERED then plans, plan_bytes = {}, 0 end
  plans[digest], plan_bytes = plan, plan_bytes + #message
  return plan
end
