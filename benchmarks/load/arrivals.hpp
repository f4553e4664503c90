// The schedule of an open loop: the times at which requests are due, whatever the server does. Pure; used by Engine.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>

#include "clock.hpp"
#include "options.hpp"

namespace load {

// The arrivals of thread `thread`: with uniform arrivals the threads take turns in one schedule, with Poisson each has
// an independent process of its share of the rate (their sum is again Poisson).
class Arrivals {
public:
    Arrivals(const Options& options, int64_t thread)
        : law_(options.arrivals),
          burst_(options.arrivals_burst),
          num_threads_(options.num_threads),
          arrivals_per_s_(options.rate / static_cast<double>(options.arrivals_burst)),
          index_(thread),
          random_(options.seed * 1'000'003 + static_cast<uint64_t>(thread)) {
        if (law_ == ArrivalLaw::poisson) offset_s_ = gap_s();
        if (law_ == ArrivalLaw::uniform) offset_s_ = static_cast<double>(index_) / arrivals_per_s_;
    }

    // When the next request is due, in nanoseconds after the start.
    int64_t next_ns() const { return std::llround(offset_s_ * static_cast<double>(kNsPerSecond)); }

    void advance() {
        if (++num_in_burst_ < burst_) return;
        num_in_burst_ = 0;
        index_ += num_threads_;
        // From the index, not from the last time: rounding never adds up to a drift.
        offset_s_ = law_ == ArrivalLaw::uniform ? static_cast<double>(index_) / arrivals_per_s_ : offset_s_ + gap_s();
    }

private:
    double gap_s() {
        const double uniform = std::generate_canonical<double, 53>(random_);
        return -std::log1p(-uniform) * static_cast<double>(num_threads_) / arrivals_per_s_;
    }

    ArrivalLaw law_;
    int64_t burst_;
    int64_t num_threads_;
    double arrivals_per_s_;
    int64_t index_;
    int64_t num_in_burst_ = 0;
    double offset_s_ = 0.0;
    std::mt19937_64 random_;
};

}  // namespace load
