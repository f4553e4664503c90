// Log-linear histogram of durations (the idea of Gil Tene's HdrHistogram): every power of two is cut into 64 equal
// buckets, so a quantile is at most 1/128 (0.8 %) off. Takes nanoseconds; read by results.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace load {

class Histogram {
public:
    void record(int64_t value_ns) {
        const uint64_t value = value_ns > 0 ? static_cast<uint64_t>(value_ns) : 0;
        const size_t bucket = bucket_of(value);
        if (bucket >= counts_.size()) counts_.resize(bucket + 1);
        ++counts_[bucket];
        min_ = count_ == 0 ? value : std::min(min_, value);
        max_ = std::max(max_, value);
        sum_ += static_cast<double>(value);
        ++count_;
    }

    void merge(const Histogram& other) {
        if (other.count_ == 0) return;
        if (other.counts_.size() > counts_.size()) counts_.resize(other.counts_.size());
        for (size_t bucket = 0; bucket < other.counts_.size(); ++bucket) counts_[bucket] += other.counts_[bucket];
        min_ = count_ == 0 ? other.min_ : std::min(min_, other.min_);
        max_ = std::max(max_, other.max_);
        sum_ += other.sum_;
        count_ += other.count_;
    }

    // The value below or at which a share of `quantile` (0 to 1) of the records lies; 0 if there are none.
    uint64_t quantile_ns(double quantile) const {
        if (count_ == 0) return 0;
        const auto rank = static_cast<uint64_t>(std::ceil(quantile * static_cast<double>(count_)));
        uint64_t seen = 0;
        for (size_t bucket = 0; bucket < counts_.size(); ++bucket) {
            seen += counts_[bucket];
            if (seen >= rank && counts_[bucket] > 0) return std::clamp(middle_of(bucket), min_, max_);
        }
        return max_;
    }

    uint64_t count() const { return count_; }
    uint64_t min_ns() const { return min_; }
    uint64_t max_ns() const { return max_; }
    double mean_ns() const { return count_ == 0 ? 0.0 : sum_ / static_cast<double>(count_); }

private:
    static constexpr int kLinearBits = 6;
    static constexpr uint64_t kLinear = uint64_t{1} << kLinearBits;

    static size_t bucket_of(uint64_t value) {
        if (value < kLinear) return value;
        const int shift = 63 - __builtin_clzll(value) - kLinearBits;
        return static_cast<size_t>(shift) * kLinear + (value >> shift);
    }

    static uint64_t middle_of(size_t bucket) {
        if (bucket < 2 * kLinear) return bucket;
        const uint64_t shift = bucket / kLinear - 1;
        const uint64_t step = bucket - shift * kLinear;
        return (step << shift) + (uint64_t{1} << (shift - 1));
    }

    std::vector<uint64_t> counts_;
    uint64_t count_ = 0;
    uint64_t min_ = 0;
    uint64_t max_ = 0;
    double sum_ = 0.0;
};

}  // namespace load
