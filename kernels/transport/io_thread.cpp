#include "io_thread.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace headroom {
namespace {

constexpr uint64_t kListenerKey = 0, kWakerKey = 1, kFirstConnection = 2;
constexpr int kMaxPolled = 256;
constexpr int kMaxAccepted = 64;  // in one turn
constexpr size_t kScratch = 256 << 10;
constexpr int64_t kCheckEveryNs = 250'000'000;
constexpr int kCheckEveryMs = 250;
// While there are calls, the thread itself looks at its timers this often, so that a helper seldom has to wake it for one.
constexpr int kActiveMs = 5;
// So few commands are carried out by the thread that posts them.
constexpr size_t kFewCommands = 4;

bool watch(int poller, int fd, uint32_t events, uint64_t key) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = key;
  return epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) == 0;
}

std::string text_of(const sockaddr_storage& address) {
  char host[INET6_ADDRSTRLEN] = {};
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &v4.sin_addr, host, sizeof host);
    return std::string(host) + ":" + std::to_string(ntohs(v4.sin_port));
  }
  if (address.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    inet_ntop(AF_INET6, &v6.sin6_addr, host, sizeof host);
    return "[" + std::string(host) + "]:" + std::to_string(ntohs(v6.sin6_port));
  }
  return "unix";
}

}  // namespace

int64_t monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

IoThread::IoThread(Shared& shared, uint32_t index, int listener)
    : shared_(shared), index_(index), listener_(listener), now_ns_(monotonic_ns()), table_(shared.table), wheel_(now_ns_), scratch_(kScratch) {
  poller_ = epoll_create1(EPOLL_CLOEXEC);
  waker_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (poller_ < 0 || waker_ < 0 || !watch(poller_, waker_, EPOLLIN, kWakerKey)) {
    throw std::system_error(errno, std::generic_category(), "epoll or eventfd");
  }
  listen(true);
}

IoThread::~IoThread() {
  stop();
  join();
  connections_.clear();
  ::close(poller_);
  ::close(waker_);
}

template <typename Work>
void IoThread::guarded(uint64_t id, Work work) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  try {
    work(*found->second);
  } catch (const std::exception&) {
    close(id);
  }
}

void IoThread::start() { thread_ = std::thread([this] { run(); }); }

void IoThread::join() {
  if (thread_.joinable()) thread_.join();
}

void IoThread::post(std::vector<Command>&& commands) {
  const bool is_few = commands.size() <= kFewCommands;
  {
    std::lock_guard guard(lock_);
    if (posted_.empty()) posted_ = std::move(commands);
    else posted_.insert(posted_.end(), std::make_move_iterator(commands.begin()), std::make_move_iterator(commands.end()));
  }
  has_posted_.store(true, std::memory_order_seq_cst);
  if (!is_few) return wake();
  while (has_posted()) {
    std::unique_lock guard(turn_lock_, std::try_to_lock);
    if (!guard.owns_lock()) return;  // who has the lock looks again when it lets go
    turn(nullptr, 0);
  }
  look_after();
}

// Has the thread itself keep what a turn of somebody else has left: a new deadline, or something still to be read.
void IoThread::look_after() {
  if (wheel_hint_ns_.load() < wakes_at_ns_.load() || has_unread_.load()) wake();
}

void IoThread::wake() { eventfd_write(waker_, 1); }

void IoThread::wake_helper() {
  if (is_helper_waiting_.load(std::memory_order_seq_cst)) wake();
}

void IoThread::help(int timeout_ms) {
  if (stop_asked_.load()) return;
  epoll_event polled[kMaxPolled];
  is_helper_waiting_.store(true, std::memory_order_seq_cst);
  const int n = shared_.inbox.has_any() ? 0 : epoll_wait(poller_, polled, kMaxPolled, timeout_ms);
  is_helper_waiting_.store(false, std::memory_order_seq_cst);
  see_to(polled, n);
  look_after();
}

void IoThread::drain() {
  drain_asked_.store(true);
  wake();
}

void IoThread::stop() {
  stop_asked_.store(true);
  wake();
}

bool IoThread::open_call() {
  if (shared_.num_calls.fetch_add(1, std::memory_order_relaxed) < shared_.limits.max_calls) return true;
  shared_.num_calls.fetch_sub(1, std::memory_order_relaxed);
  return false;
}

void IoThread::run() {
  epoll_event polled[kMaxPolled];
  while (!stop_asked_.load()) {
    const int ms = sleep_ms();
    const int n = epoll_wait(poller_, polled, kMaxPolled, has_posted() ? 0 : ms);  // posted while sleep_ms had the lock
    see_to(polled, n);
    if (is_helper_waiting_.load() && shared_.inbox.has_any()) wake();  // its waking may have come here
  }
  std::lock_guard guard(turn_lock_);
  run_commands();
  for (auto& [id, connection] : connections_) connection->write();
  shared_.num_connections.fetch_sub(connections_.size());
  connections_.clear();
  hand_over();
}

int IoThread::sleep_ms() {
  std::lock_guard guard(turn_lock_);
  now_ns_ = monotonic_ns();
  int ms = has_posted() || !unread_.empty() ? 0 : connections_.empty() ? 4 * kCheckEveryMs : kCheckEveryMs;
  wheel_.forget_earliest();
  wheel_hint_ns_.store(INT64_MAX);
  if (ms > 0 && shared_.num_calls.load(std::memory_order_relaxed) > 0) ms = wheel_.next_ms(now_ns_, kActiveMs);
  wakes_at_ns_.store(now_ns_ + ms * int64_t{1'000'000});
  return ms;
}

void IoThread::see_to(const epoll_event* polled, int n) {
  do {
    std::lock_guard guard(turn_lock_);
    turn(polled, n);
    n = 0;
  } while (has_posted());  // what was posted while the lock was held is nobody else's
}

// Everything that has arrived is read before Python is told, so that it comes as one batch.
void IoThread::turn(const epoll_event* polled, int n) {
  now_ns_ = monotonic_ns();
  inflated_ = 0;
  look_at_table();
  const std::vector<uint64_t> unread = std::exchange(unread_, {});
  for (int i = 0; i < n; i++) {
    const uint64_t key = polled[i].data.u64;
    if (key == kListenerKey) {
      accept_all();
    } else if (key == kWakerKey) {
      eventfd_t count = 0;
      eventfd_read(waker_, &count);
    } else {
      const uint32_t events = polled[i].events;
      guarded(key, [this, events](Connection& connection) {
        if (connection.is_blocked() && (events & EPOLLOUT) != 0) mark(connection);
        const bool has_ended = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
        if (has_ended || (events & EPOLLIN) != 0) read(connection, has_ended);
      });
    }
  }
  for (const uint64_t id : unread) {
    guarded(id, [this](Connection& connection) {
      connection.is_unread = false;
      read(connection, true);
    });
  }
  run_commands();
  wheel_.advance(now_ns_, [this](void* owner) {
    Stream& stream = *static_cast<Stream*>(owner);
    guarded(stream.call->connection, [this, &stream](Connection& connection) {
      stream.session.expire(stream);
      mark(connection);
    });
  });
  if (drain_asked_.exchange(false)) begin_drain();
  if (now_ns_ - checked_ns_ > kCheckEveryNs) check_all();
  hand_over();
  flush();
  has_unread_.store(!unread_.empty());
  wheel_hint_ns_.store(wheel_.earliest_set_ns());
}

void IoThread::look_at_table() {
  const uint64_t version = shared_.table_version.load(std::memory_order_acquire);
  if (version == table_version_) return;
  std::lock_guard guard(shared_.lock);
  table_ = shared_.table;
  table_version_ = version;
}

void IoThread::read(Connection& connection, bool may_have_ended) {
  switch (connection.read(scratch_.data(), scratch_.size(), may_have_ended)) {
    case Connection::Read::over: return close(connection.id());
    case Connection::Read::more: read_next_turn(connection); break;
    case Connection::Read::drained: break;
  }
  if (connection.is_dirty) mark(connection);
}

void IoThread::read_next_turn(Connection& connection) {
  if (!std::exchange(connection.is_unread, true)) unread_.push_back(connection.id());
}

// Without descriptors to accept with, the listener would have the poller spin: it rests until the next check.
void IoThread::listen(bool is_on) {
  if (is_on == is_listening_) return;
  if (is_on) {
    is_listening_ = watch(poller_, listener_, EPOLLIN | EPOLLEXCLUSIVE, kListenerKey);
  } else {
    epoll_ctl(poller_, EPOLL_CTL_DEL, listener_, nullptr);
    is_listening_ = false;
  }
}

void IoThread::accept_all() {
  for (int i = 0; i < kMaxAccepted; i++) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    const int fd = accept4(listener_, reinterpret_cast<sockaddr*>(&address), &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) listen(false);
      return;
    }
    if (shared_.num_connections.load() >= shared_.limits.max_connections) {
      shared_.num_refused_connections.fetch_add(1);
      ::close(fd);
      continue;
    }
    try {
      adopt(fd, text_of(address));
    } catch (const std::exception&) {  // no memory for one more
      shared_.num_refused_connections.fetch_add(1);
    }
  }
}

void IoThread::adopt(int fd, std::string peer) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const uint64_t id = shared_.next_id.fetch_add(1) + kFirstConnection;
  TlsContext tls;
  {
    std::lock_guard guard(shared_.lock);
    tls = shared_.tls;
  }
  auto connection = std::make_unique<Connection>(fd, id, *this, shared_.limits, tls, std::move(peer));
  if (!watch(poller_, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, id)) return;
  shared_.num_connections.fetch_add(1);
  shared_.num_accepted.fetch_add(1);
  mark(*connection);
  connections_.emplace(id, std::move(connection));
}

void IoThread::run_commands() {
  if (!has_posted_.exchange(false, std::memory_order_seq_cst)) return;
  std::vector<Command> commands;
  {
    std::lock_guard guard(lock_);
    commands.swap(posted_);
  }
  for (Command& command : commands) {
    guarded(command.call->connection, [this, &command](Connection& connection) {
      connection.session().apply(command);
      mark(connection);
      if (connection.wants_read()) read_next_turn(connection);
    });
  }
}

void IoThread::hand_over() {
  if (events_.empty() && ended_.empty()) return;
  const std::vector<Event> all_refused = shared_.inbox.push(events_, ended_);
  shared_.wake_taker();
  for (const Event& refused : all_refused) {
    guarded(refused.call->connection, [this, &refused](Connection& connection) {
      connection.session().refuse(refused.call, table_->routes[refused.call->route].queue_full);
      mark(connection);
    });
  }
}

void IoThread::mark(Connection& connection) {
  connection.is_dirty = true;
  dirty_.push_back(connection.id());
}

void IoThread::flush() {
  for (size_t i = 0; i < dirty_.size(); i++) {
    guarded(dirty_[i], [this](Connection& connection) {
      if (connection.is_dirty) flush(connection);
    });
  }
  dirty_.clear();
  if (!events_.empty() || !ended_.empty()) hand_over();  // what writing has set free, or closed
  if (!dirty_.empty()) flush();
}

void IoThread::flush(Connection& connection) {
  connection.is_dirty = false;
  if (!connection.write()) return close(connection.id());
  if (connection.wants_read()) read_next_turn(connection);
}

void IoThread::check_all() {
  checked_ns_ = now_ns_;
  if (!is_draining_) listen(true);
  std::vector<uint64_t> over;
  for (auto& [id, connection] : connections_) {
    if (is_draining_) connection->drain();
    if (!connection->check()) over.push_back(id);
    else if (connection->is_dirty) dirty_.push_back(id);
  }
  for (const uint64_t id : over) close(id);
}

void IoThread::begin_drain() {
  listen(false);
  is_draining_ = true;
  for (auto& [id, connection] : connections_) {
    connection->drain();
    mark(*connection);
  }
  checked_ns_ = now_ns_;
}

void IoThread::close(uint64_t id) {
  if (connections_.erase(id) > 0) shared_.num_connections.fetch_sub(1);
}

}  // namespace headroom
