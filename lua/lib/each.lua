-- each: how calls travel together, and what they answer to a fault. Needs base, formats.

-- The answer of a script that found something wrong and wrote nothing. `reason` is the reason of ErrorInfo; `group` is a place in the plan
-- whose digest is `plan`.
local function fault(reason, group, name, plan)
  return write_fault({ kind = FAULT_KIND, plan = plan or ZEROS_8, group = group or 0, reason = reason, name = name or '' })
end

-- How many lapsed holds the calls have written, and how many ledgers whose time had been wrong.
local lapsed_holds, corrected_clocks

-- Several calls of one script, of any users, travel together: the keys and the arguments of one after those of another. Each has its
-- answer, in their order, and an error of one does not touch the others. If holds have lapsed or clocks were corrected, both numbers
-- come after the answers. `run` takes how many keys and arguments come before its own.
local function each(run, key_count, argument_count)
  redis_time, lapsed_holds, corrected_clocks = nil, 0, 0
  local calls = #KEYS / key_count
  local answers = {}
  if calls == 1 then
    answers[1] = run(0, 0)
  else
    for i = 0, calls - 1 do
      local ran, answer = pcall(run, i * key_count, i * argument_count)
      if not ran then answer = fault('SCRIPT_ERROR', 0, type(answer) == 'table' and answer.err or tostring(answer)) end
      answers[i + 1] = answer
    end
  end
  if lapsed_holds + corrected_clocks > 0 then answers[calls + 1], answers[calls + 2] = lapsed_holds, corrected_clocks end
  return answers
end
