// What one event loop has counted, and how two such counts become one. Filled by Engine; read by report.cpp.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "connection.hpp"
#include "histogram.hpp"

namespace load {

struct TimelineStep {
    uint64_t num_ok = 0;
    uint64_t num_refused = 0;
    uint64_t num_failed = 0;
    Histogram ok_latency;
};

// One measured request, for the CSV. Times count from the start of the measured window.
struct Sample {
    static constexpr int64_t kNever = INT64_MIN;

    int64_t scheduled_ns = 0;
    int64_t sent_ns = kNever;
    int64_t finished_ns = kNever;
    const char* outcome = "";  // answered, not_sent or the name of a Failure
    int status = 0;            // of an answer
};

struct Tally {
    // Requests scheduled within the measured window; each ends as completed, failed or not_sent.
    uint64_t num_offered = 0;
    uint64_t num_sent = 0;
    uint64_t num_completed = 0;
    uint64_t num_ok = 0;
    uint64_t num_late = 0;
    uint64_t num_not_sent = 0;
    std::array<uint64_t, kNumFailures> num_failed{};

    // Ok answers that arrived within the window, whenever their requests were scheduled: the throughput.
    uint64_t num_ok_in_window = 0;
    uint64_t num_resent = 0;
    uint64_t num_connections_opened = 0;

    std::map<int, uint64_t> num_by_status;
    Histogram ok_latency;
    Histogram refused_latency;
    Histogram schedule_lag;
    std::vector<TimelineStep> timeline;
    std::vector<Sample> samples;

    double user_s = 0.0;
    double system_s = 0.0;

    void merge(const Tally& other);
};

}  // namespace load
