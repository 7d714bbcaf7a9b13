-- For wrk: sends the request in the environment variables, and prints a line of JSON at the end.
-- BENCH_USERS: how many users take turns, in X-Wattfare-User.

wrk.method = os.getenv("BENCH_METHOD")
for line in (os.getenv("BENCH_HEADERS") or ""):gmatch("[^\n]+") do
   local name, value = line:match("^([^:]+): (.*)$")
   wrk.headers[name] = value
end
local file = os.getenv("BENCH_BODY")
if file then
   local handle = io.open(file, "rb")
   wrk.body = handle:read("*a")
   handle:close()
end

local users = tonumber(os.getenv("BENCH_USERS") or "0")
if users > 0 then
   local requests, turn = {}, 0
   function init()
      for user = 1, users do
         wrk.headers["X-Wattfare-User"] = "user_" .. user
         requests[user] = wrk.format()
      end
   end
   function request()
      turn = turn % users + 1
      return requests[turn]
   end
end

function done(summary, latency)
   local e = summary.errors
   print(string.format(
      'JSON {"requests": %d, "seconds": %f, "bytes": %d, "errors": %d, "p50_ms": %f, "p99_ms": %f}',
      summary.requests, summary.duration / 1e6, summary.bytes,
      e.connect + e.read + e.write + e.status + e.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
