-- wrk's requests for POST /v1/fraud/score: bodies from a file, one JSON object per line, each with an id of its own.
--   wrk … -s benchmarks/unique_ids.lua URL -- BODIES.jsonl FIRST_ID
-- One thread (-t1): ids are counted here. Prints what was measured as one line of JSON.

local MARKER = "ID__________"
local bodies, next_id, turn = {}, 0, 0

function init(args)
  next_id = tonumber(args[2])
  for line in io.lines(args[1]) do
    local begins, ends = line:find(MARKER, 1, true)
    bodies[#bodies + 1] = { line:sub(1, begins - 1), line:sub(ends + 1) }
  end
  wrk.method = "POST"
  wrk.headers["content-type"] = "application/json"
end

function request()
  next_id, turn = next_id + 1, turn % #bodies + 1
  local body = bodies[turn]
  return wrk.format(nil, nil, nil, body[1] .. string.format("%012d", next_id) .. body[2])
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.3f, "p50_us": %d, "p99_us": %d, "max_us": %d, "not_2xx": %d, "failed": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99), latency.max,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
