// One thread that owns sockets: accepts, reads, writes, keeps deadlines. Never touches Python. To be woken costs more than
// most requests do, so whoever is awake helps: the thread that takes requests waits for sockets as well, and small answers
// are written by the thread that has them. A lock sees to it that one of them does at a time.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "config.hpp"
#include "connection.hpp"
#include "inbox.hpp"
#include "session.hpp"

namespace headroom {

// What all I/O threads of a server share.
struct Shared {
  explicit Shared(const Limits& l) : limits(l), inbox(l.max_calls), memory(std::make_shared<Memory>(l.max_buffered_bytes)) {}

  const Limits limits;
  Inbox inbox;
  const std::shared_ptr<Memory> memory;
  std::atomic<size_t> num_connections{0};
  std::atomic<size_t> num_calls{0};
  std::atomic<uint64_t> num_accepted{0};
  std::atomic<uint64_t> num_refused_connections{0};
  std::atomic<uint64_t> next_id{1};
  std::mutex lock;  // of these two
  TlsContext tls;
  std::shared_ptr<const Table> table = std::make_shared<const Table>();
  std::atomic<uint64_t> table_version{0};
  std::function<void()> wake_taker = [] {};
};

class IoThread final : public Host {
 public:
  // `listener` stays the caller's.
  IoThread(Shared& shared, uint32_t index, int listener);
  ~IoThread() override;

  void start();
  // From any thread: commands for this thread's connections; a few are carried out at once.
  void post(std::vector<Command>&& commands);
  // From the thread that takes: waits for sockets in this one's place, and does what they ask for.
  void help(int timeout_ms);
  // Has whoever helps look at the inbox.
  void wake_helper();
  // From any thread: accept no more, and let connections go.
  void drain();
  void stop();
  void join();

  int64_t now_ns() const override { return now_ns_; }
  const Table& table() const override { return *table_; }
  TimingWheel& wheel() override { return wheel_; }
  const std::shared_ptr<Memory>& memory() override { return shared_.memory; }
  uint64_t next_call_id() override { return shared_.next_id.fetch_add(1, std::memory_order_relaxed); }
  uint32_t index() const override { return index_; }
  bool open_call() override;
  void close_call() override { shared_.num_calls.fetch_sub(1, std::memory_order_relaxed); }
  void deliver(Event&& event) override { events_.push_back(std::move(event)); }
  void ended(const CallPtr& call, int code) override { ended_.push_back({call, code}); }
  void count(uint32_t route, Unseen what) override { shared_.inbox.count(route, what); }
  bool may_inflate() const override { return inflated_ < kInflatedPerTurn; }
  void inflated(size_t bytes) override { inflated_ += bytes; }

 private:
  static constexpr size_t kInflatedPerTurn = 2 << 20;

  void run();
  void see_to(const epoll_event* polled, int n);
  void turn(const epoll_event* polled, int n);
  void listen(bool is_on);
  void accept_all();
  void adopt(int fd, std::string peer);
  void read(Connection& connection, bool may_have_ended);
  void read_next_turn(Connection& connection);
  void look_after();
  void run_commands();
  void hand_over();
  void flush();
  void flush(Connection& connection);
  void mark(Connection& connection);
  void check_all();
  void begin_drain();
  void close(uint64_t id);
  // Does something for one connection; where memory is short, it alone is closed.
  template <typename Work>
  void guarded(uint64_t id, Work work);
  void look_at_table();
  int sleep_ms();
  bool has_posted() const { return has_posted_.load(std::memory_order_seq_cst); }
  void wake();

  Shared& shared_;
  const uint32_t index_;
  const int listener_;
  int poller_ = -1;
  int waker_ = -1;
  std::thread thread_;

  std::mutex turn_lock_;  // of all from here to the next lock
  int64_t now_ns_ = 0;
  int64_t checked_ns_ = 0;
  std::shared_ptr<const Table> table_;
  uint64_t table_version_ = 0;
  TimingWheel wheel_;
  std::unordered_map<uint64_t, std::unique_ptr<Connection>> connections_;
  std::vector<uint64_t> dirty_;
  std::vector<uint64_t> unread_;  // had more to read than their turn allowed
  std::vector<Event> events_;
  std::vector<Ended> ended_;
  std::vector<uint8_t> scratch_;
  size_t inflated_ = 0;
  bool is_listening_ = false;
  bool is_draining_ = false;

  std::mutex lock_;  // of what other threads post
  std::vector<Command> posted_;
  std::atomic<bool> has_posted_{false};
  std::atomic<bool> is_helper_waiting_{false};
  std::atomic<int64_t> wakes_at_ns_{0};
  std::atomic<int64_t> wheel_hint_ns_{INT64_MAX};  // the earliest timer set since the thread went to sleep
  std::atomic<bool> has_unread_{false};
  std::atomic<bool> drain_asked_{false};
  std::atomic<bool> stop_asked_{false};
};

// The monotonic clock, as Python's time.monotonic_ns reads it.
int64_t monotonic_ns();

}  // namespace headroom
