-- in_force: which plan decides a call. Needs each, plan, answer, begin, subscription.

-- Returns the plan that decides the call, nil, and whether the subscription has just ended. If no plan decides it, returns nil and the
-- answer: the call must be compiled again, or the owner has no plan.
local function plan_in_force(led, asked, message)
  local plan = asked.in_force == IN_FORCE and plan_of(asked.plan, message) or nil
  local is_current, has_changed = check_subscription(led, asked, plan)
  if not is_current then return nil, stale(led) end
  if asked.in_force == UNKNOWN_PLAN then return nil, fault('PLAN_UNKNOWN') end
  if not plan then return nil, answer({ outcome = NO_SUBSCRIPTION }, 0) end
  return plan, nil, has_changed
end
