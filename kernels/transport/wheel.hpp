// A hashed timing wheel (Varghese and Lauck 1987, scheme 6): deadlines of many calls, most of which never come.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace headroom {

// What waits for a time; a member of its owner, linked in place. Leaves the wheel when it is destroyed.
struct Timer {
  Timer* next = nullptr;
  Timer* previous = nullptr;
  int64_t at_ns = 0;
  void* owner = nullptr;

  Timer() = default;
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() { cancel(); }

  void cancel() {
    if (next == nullptr) return;
    next->previous = previous;
    previous->next = next;
    next = previous = nullptr;
  }
};

class TimingWheel {
 public:
  static constexpr int64_t kTickNs = 1'000'000;
  static constexpr int64_t kSlots = 1024;

  explicit TimingWheel(int64_t now_ns) : done_tick_(now_ns / kTickNs) {
    for (Timer& head : slots_) head.next = head.previous = &head;
  }
  ~TimingWheel() {
    for (Timer& head : slots_) {
      while (head.next != &head) head.next->cancel();
      head.next = head.previous = nullptr;
    }
  }
  TimingWheel(const TimingWheel&) = delete;
  TimingWheel& operator=(const TimingWheel&) = delete;

  // Sets `timer` anew. What is due already comes with the next tick.
  void set(Timer& timer, int64_t at_ns, void* owner) {
    timer.cancel();
    timer.at_ns = at_ns;
    earliest_set_ns_ = std::min(earliest_set_ns_, at_ns);
    timer.owner = owner;
    int64_t tick = at_ns / kTickNs + 1;  // never early
    if (tick <= done_tick_) tick = done_tick_ + 1;
    Timer& head = slots_[static_cast<size_t>(tick % kSlots)];
    timer.next = &head;
    timer.previous = head.previous;
    head.previous->next = &timer;
    head.previous = &timer;
  }

  // Calls `expire(owner)` for everything due. It may cancel and set timers, of whoever it likes.
  template <typename Expire>
  void advance(int64_t now_ns, Expire expire) {
    const int64_t tick = now_ns / kTickNs;
    if (tick - done_tick_ > kSlots) done_tick_ = tick - kSlots;
    while (done_tick_ < tick) {
      Timer& head = slots_[static_cast<size_t>(++done_tick_ % kSlots)];
      Timer due;
      due.next = due.previous = &due;
      for (Timer* timer = head.next; timer != &head;) {
        Timer* following = timer->next;
        if (timer->at_ns <= now_ns) {
          timer->cancel();
          timer->next = &due;
          timer->previous = due.previous;
          due.previous->next = timer;
          due.previous = timer;
        }
        timer = following;
      }
      while (due.next != &due) {
        Timer* timer = due.next;
        timer->cancel();
        expire(timer->owner);
      }
    }
  }

  // The earliest time that was set since `forget_earliest`, whatever became of it.
  int64_t earliest_set_ns() const { return earliest_set_ns_; }
  void forget_earliest() { earliest_set_ns_ = INT64_MAX; }

  // Milliseconds until the next slot with something in it, at most `max_ms`.
  int next_ms(int64_t now_ns, int max_ms) const {
    const int64_t tick = now_ns / kTickNs;
    for (int64_t ahead = done_tick_ + 1; ahead <= tick + max_ms && ahead <= done_tick_ + kSlots; ahead++) {
      const Timer& head = slots_[static_cast<size_t>(ahead % kSlots)];
      if (head.next != &head) return ahead > tick ? static_cast<int>(ahead - tick) : 0;
    }
    return max_ms;
  }

 private:
  std::array<Timer, kSlots> slots_;
  int64_t done_tick_;
  int64_t earliest_set_ns_ = INT64_MAX;
};

}  // namespace headroom
