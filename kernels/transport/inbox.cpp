#include "inbox.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

namespace headroom {
namespace {

// Calls that ended while they waited are swept out when there are this many more of them than of the others.
constexpr size_t kSweepAbove = 64;
// Or when their messages take this much.
constexpr size_t kSweepBytes = 4 << 20;

Unseen unseen_of(int code) {
  return code == kCancelled ? Unseen::cancelled : code == kDeadlineExceeded ? Unseen::expired : Unseen::invalid;
}

}  // namespace

void Inbox::set_groups(const std::vector<size_t>& group_of_route) {
  std::lock_guard guard(lock_);
  group_of_route_ = group_of_route;
  tallies_.resize(group_of_route.size());
  for (const size_t group : group_of_route) {
    if (group >= groups_.size()) groups_.resize(group + 1);
  }
}

void Inbox::set_bound(size_t group, size_t bound) {
  std::lock_guard guard(lock_);
  groups_.at(group).bound = bound;
}

void Inbox::set_room(size_t group, size_t room) {
  std::lock_guard guard(lock_);
  groups_.at(group).room = room;
}

void Inbox::enqueue(Group& group, Event&& event) {
  const int64_t deadline_ns = event.call->deadline_ns;
  event.call->is_queued = true;
  event.call->waiting_bytes = event.payload.bytes().size();
  group.heap.push_back({deadline_ns, next_order_++, std::move(event)});
  std::push_heap(group.heap.begin(), group.heap.end(), Later{});
  group.num_live++;
}

void Inbox::end(const Ended& one) {
  if (one.call->was_taken) {
    others_.push_back({one.call, Event::Kind::ended, one.code, {}});
    return;
  }
  const size_t route = one.call->route;
  tallies_[route][static_cast<size_t>(unseen_of(one.code))]++;
  has_tallies_ = true;
  Group& group = groups_[group_of_route_[route]];
  if (!one.call->is_queued) return;
  one.call->is_queued = false;
  group.num_live--;
  group.dead_bytes += one.call->waiting_bytes;
  if (group.heap.size() > 2 * group.num_live + kSweepAbove || group.dead_bytes > kSweepBytes) sweep(group);
}

void Inbox::sweep(Group& group) {
  const auto is_over = [](const Queued& queued) { return !queued.event.call->is_queued; };
  group.heap.erase(std::remove_if(group.heap.begin(), group.heap.end(), is_over), group.heap.end());
  std::make_heap(group.heap.begin(), group.heap.end(), Later{});
  group.dead_bytes = 0;
}

std::vector<Event> Inbox::push(std::vector<Event>& events, std::vector<Ended>& ended) {
  std::vector<Event> refused;
  if (events.empty() && ended.empty()) return refused;
  std::lock_guard guard(lock_);
  for (Event& event : events) {
    Call& call = *event.call;
    const bool is_request = event.kind == Event::Kind::request;
    if (!is_request && event.kind != Event::Kind::opened) {
      if (call.was_taken) others_.push_back(std::move(event));  // else its beginning was refused, or had ended
      continue;
    }
    if (call.is_settled.load(std::memory_order_acquire)) continue;
    Group& group = groups_[group_of_route_[call.route]];
    if (is_request ? group.num_live >= group.bound : num_opened_ >= max_opened_) {
      tallies_[call.route][static_cast<size_t>(Unseen::queue_full)]++;
      has_tallies_ = true;
      refused.push_back(std::move(event));
    } else if (is_request) {
      enqueue(group, std::move(event));
    } else {
      call.was_taken = true;
      num_opened_++;
      others_.push_back(std::move(event));
    }
  }
  for (const Ended& one : ended) end(one);
  events.clear();
  ended.clear();
  if (is_waited_for_ && is_ready()) arrived_.notify_one();
  return refused;
}

void Inbox::count(size_t route, Unseen what) {
  std::lock_guard guard(lock_);
  tallies_[route][static_cast<size_t>(what)]++;
  has_tallies_ = true;
}

bool Inbox::is_ready() const {
  if (!others_.empty() || is_woken_) return true;
  return std::any_of(groups_.begin(), groups_.end(), [](const Group& g) { return g.num_live > 0 && g.room > 0; });
}

bool Inbox::has_any() {
  std::lock_guard guard(lock_);
  return is_ready();
}

void Inbox::wait(int64_t timeout_ns) {
  std::unique_lock guard(lock_);
  is_waited_for_ = true;
  arrived_.wait_for(guard, std::chrono::nanoseconds(timeout_ns), [this] { return is_ready(); });
  is_waited_for_ = false;
}

void Inbox::take(std::vector<Event>& taken) {
  std::lock_guard guard(lock_);
  is_woken_ = false;
  num_opened_ = 0;
  while (!others_.empty()) {
    taken.push_back(std::move(others_.front()));
    others_.pop_front();
  }
  for (Group& group : groups_) {
    for (size_t n = 0; n < group.room && !group.heap.empty();) {
      std::pop_heap(group.heap.begin(), group.heap.end(), Later{});
      Event event = std::move(group.heap.back().event);
      group.heap.pop_back();
      if (!event.call->is_queued) {
        group.dead_bytes -= std::min(group.dead_bytes, event.call->waiting_bytes);
        continue;
      }
      event.call->is_queued = false;
      group.num_live--;
      if (event.call->is_settled.load(std::memory_order_acquire)) continue;  // its end is on the way
      event.call->was_taken = true;
      taken.push_back(std::move(event));
      n++;
    }
  }
}

void Inbox::wake() {
  std::lock_guard guard(lock_);
  is_woken_ = true;
  arrived_.notify_one();
}

std::vector<Tally> Inbox::tallies() {
  std::lock_guard guard(lock_);
  if (!has_tallies_) return {};
  has_tallies_ = false;
  return std::exchange(tallies_, std::vector<Tally>(tallies_.size()));
}

size_t Inbox::waiting(size_t group) {
  std::lock_guard guard(lock_);
  return groups_.at(group).num_live;
}

}  // namespace headroom
