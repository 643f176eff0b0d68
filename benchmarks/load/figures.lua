-- What a run of wrk gave, as one line of JSON; wrk counts in microseconds.
done = function(summary, latency, requests)
  local errors = summary.errors
  local line = '{"rate": %.3f, "mean": %.6f, "p50": %.6f, "p99": %.6f, "longest": %.6f, "errors": %d}\n'
  io.write(line:format(
    summary.requests / summary.duration * 1e6,
    latency.mean / 1e6,
    latency:percentile(50) / 1e6,
    latency:percentile(99) / 1e6,
    latency.max / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end
