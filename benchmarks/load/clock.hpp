// Monotonic time in nanoseconds: the only clock of the generator.
#pragma once

#include <ctime>

#include <cstdint>

namespace load {

constexpr int64_t kNsPerSecond = 1'000'000'000;
constexpr int64_t kNsPerMs = 1'000'000;

inline int64_t now_ns() {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * kNsPerSecond + time.tv_nsec;
}

}  // namespace load
