// Merging the counts of several event loops.
#include "tally.hpp"

#include <algorithm>

namespace load {

void Tally::merge(const Tally& other) {
    num_offered += other.num_offered;
    num_sent += other.num_sent;
    num_completed += other.num_completed;
    num_ok += other.num_ok;
    num_late += other.num_late;
    num_not_sent += other.num_not_sent;
    for (size_t kind = 0; kind < kNumFailures; ++kind) num_failed[kind] += other.num_failed[kind];
    num_ok_in_window += other.num_ok_in_window;
    num_resent += other.num_resent;
    num_connections_opened += other.num_connections_opened;
    for (const auto& [status, count] : other.num_by_status) num_by_status[status] += count;
    ok_latency.merge(other.ok_latency);
    refused_latency.merge(other.refused_latency);
    schedule_lag.merge(other.schedule_lag);
    timeline.resize(std::max(timeline.size(), other.timeline.size()));
    for (size_t i = 0; i < other.timeline.size(); ++i) {
        timeline[i].num_ok += other.timeline[i].num_ok;
        timeline[i].num_refused += other.timeline[i].num_refused;
        timeline[i].num_failed += other.timeline[i].num_failed;
        timeline[i].ok_latency.merge(other.timeline[i].ok_latency);
    }
    samples.insert(samples.end(), other.samples.begin(), other.samples.end());
    user_s += other.user_s;
    system_s += other.system_s;
}

}  // namespace load
