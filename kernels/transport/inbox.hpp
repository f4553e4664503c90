// Where calls wait for Python: a bounded queue per group, ordered by deadline. The I/O threads push, one thread takes.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "call.hpp"

namespace headroom {

// What became of calls that Python was never given.
enum class Unseen : size_t { queue_full = 0, memory, concurrency, expired, cancelled, invalid, kinds };
using Tally = std::array<uint64_t, static_cast<size_t>(Unseen::kinds)>;

struct Ended {
  CallPtr call;
  int code;
};

class Inbox {
 public:
  // At most so many beginnings of streams wait.
  explicit Inbox(size_t max_opened) : max_opened_(max_opened) {}

  // Which group each route's calls wait in. There may be more of both than before, never fewer; a route's group stays.
  void set_groups(const std::vector<size_t>& group_of_route);
  // At most `bound` calls of the group wait.
  void set_bound(size_t group, size_t bound);
  // At most `room` calls of the group leave with one `take`.
  void set_room(size_t group, size_t room);

  // Takes in what one turn of an I/O thread has brought, and what ended in it; gives back what its queue has no room for.
  std::vector<Event> push(std::vector<Event>& events, std::vector<Ended>& ended);
  void count(size_t route, Unseen what);

  // Everything there is room for, the most urgent first; possibly nothing.
  void take(std::vector<Event>& taken);
  // Whether `take` would give something now.
  bool has_any();
  // Sleeps until it would, or `timeout_ns`.
  void wait(int64_t timeout_ns);
  // Has `has_any` say yes once, so that who waits takes.
  void wake();

  // The tallies since the last call, by route; empty where there is nothing to tell.
  std::vector<Tally> tallies();
  size_t waiting(size_t group);

 private:
  struct Queued {
    int64_t deadline_ns;
    uint64_t order;
    Event event;
  };
  struct Later {
    bool operator()(const Queued& a, const Queued& b) const {
      return a.deadline_ns != b.deadline_ns ? a.deadline_ns > b.deadline_ns : a.order > b.order;
    }
  };
  struct Group {
    std::vector<Queued> heap;
    size_t num_live = 0;
    size_t dead_bytes = 0;  // of calls that ended while they waited
    size_t bound = 1024;
    size_t room = 1 << 20;
  };

  bool is_ready() const;
  void enqueue(Group& group, Event&& event);
  void end(const Ended& one);
  static void sweep(Group& group);

  const size_t max_opened_;
  std::mutex lock_;
  std::vector<Group> groups_;
  std::vector<size_t> group_of_route_;
  std::vector<Tally> tallies_;
  std::deque<Event> others_;
  size_t num_opened_ = 0;  // of them
  uint64_t next_order_ = 0;
  std::condition_variable arrived_;
  bool is_waited_for_ = false;
  bool is_woken_ = false;
  bool has_tallies_ = false;
};

}  // namespace headroom
