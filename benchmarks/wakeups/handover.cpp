// Requests of a few bytes over loopback, answered by another thread than the one that reads them, or by the same: what a
// hand-over costs in time and in processor time. handover MODE CONNECTIONS SECONDS; prints one line of JSON.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

int64_t clock_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}
int64_t now_ns() { return clock_ns(CLOCK_MONOTONIC); }

std::atomic<bool> is_over{false};

// What one thread leaves for another: descriptors to be answered.
class Hand {
 public:
  Hand(bool uses_eventfd, int64_t spin_ns) : uses_eventfd_(uses_eventfd), spin_ns_(spin_ns), event_(eventfd(0, EFD_CLOEXEC)) {}
  ~Hand() { close(event_); }

  void put(const std::vector<int>& some) {
    std::unique_lock guard(lock_);
    waiting_.insert(waiting_.end(), some.begin(), some.end());
    has_any_.store(true, std::memory_order_release);
    const bool is_slept = is_sleeping_;
    if (!is_slept) return;
    if (!uses_eventfd_) return arrived_.notify_one();
    guard.unlock();
    eventfd_write(event_, 1);
  }

  std::vector<int> take() {
    const int64_t until_ns = spin_ns_ > 0 ? now_ns() + spin_ns_ : 0;
    while (spin_ns_ > 0 && !has_any_.load(std::memory_order_acquire) && now_ns() < until_ns) {
      __builtin_ia32_pause();
    }
    std::unique_lock guard(lock_);
    while (waiting_.empty() && !is_over) {
      is_sleeping_ = true;
      if (uses_eventfd_) {
        guard.unlock();
        eventfd_t count = 0;
        eventfd_read(event_, &count);
        guard.lock();
      } else {
        arrived_.wait(guard);
      }
      is_sleeping_ = false;
    }
    has_any_.store(false, std::memory_order_release);
    return std::exchange(waiting_, {});
  }

  void end() {
    std::lock_guard guard(lock_);
    arrived_.notify_one();
    eventfd_write(event_, 1);
  }

 private:
  const bool uses_eventfd_;
  const int64_t spin_ns_;
  const int event_;
  std::mutex lock_;
  std::condition_variable arrived_;
  std::vector<int> waiting_;
  std::atomic<bool> has_any_{false};
  bool is_sleeping_ = false;
};

int64_t reader(int poller, Hand* hand) {
  char bytes[64];
  epoll_event events[64];
  while (!is_over) {
    const int n = epoll_wait(poller, events, 64, 100);
    std::vector<int> arrived;
    for (int i = 0; i < n; i++) {
      if (recv(events[i].data.fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0) arrived.push_back(events[i].data.fd);
    }
    if (arrived.empty()) continue;
    if (hand != nullptr) hand->put(arrived);
    else for (const int fd : arrived) send(fd, "answer", 6, MSG_NOSIGNAL);
  }
  return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

int64_t answerer(Hand& hand) {
  while (!is_over) {
    for (const int fd : hand.take()) send(fd, "answer", 6, MSG_NOSIGNAL);
  }
  return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

// A closed loop over all connections; latencies in ns.
std::vector<int64_t> client(const std::vector<int>& fds, double seconds) {
  const int poller = epoll_create1(EPOLL_CLOEXEC);
  std::vector<int64_t> sent(65536), latencies;
  for (const int fd : fds) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    sent[static_cast<size_t>(fd)] = now_ns();
    send(fd, "request", 7, MSG_NOSIGNAL);
  }
  const int64_t until_ns = now_ns() + static_cast<int64_t>(seconds * 1e9);
  epoll_event events[64];
  char bytes[64];
  while (now_ns() < until_ns) {
    const int n = epoll_wait(poller, events, 64, 100);
    for (int i = 0; i < n; i++) {
      const int fd = events[i].data.fd;
      if (recv(fd, bytes, sizeof bytes, MSG_DONTWAIT) <= 0) continue;
      const int64_t now = now_ns();
      latencies.push_back(now - sent[static_cast<size_t>(fd)]);
      sent[static_cast<size_t>(fd)] = now;
      send(fd, "request", 7, MSG_NOSIGNAL);
    }
  }
  close(poller);
  return latencies;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "handover same|condvar|eventfd|spin-US CONNECTIONS SECONDS\n");
    return 2;
  }
  const std::string mode = argv[1];
  const int64_t spin_ns = mode.rfind("spin-", 0) == 0 ? std::atoll(mode.c_str() + 5) * 1000 : 0;
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener, 128) != 0) return 1;
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  const int poller = epoll_create1(EPOLL_CLOEXEC);
  std::vector<int> ours;
  const int on = 1;
  for (int i = 0; i < std::atoi(argv[2]); i++) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), size) != 0) return 1;
    const int theirs = accept(listener, nullptr, nullptr);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(theirs, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = theirs;
    epoll_ctl(poller, EPOLL_CTL_ADD, theirs, &event);
    ours.push_back(fd);
  }
  Hand hand(mode == "eventfd", spin_ns);
  Hand* shared = mode == "same" ? nullptr : &hand;
  std::atomic<int64_t> cpu_ns{0};
  std::thread reads([&] { cpu_ns += reader(poller, shared); });
  std::thread answers;
  if (shared != nullptr) answers = std::thread([&] { cpu_ns += answerer(hand); });
  std::vector<int64_t> latencies = client(ours, std::atof(argv[3]));
  is_over = true;
  hand.end();
  reads.join();
  if (answers.joinable()) answers.join();
  std::sort(latencies.begin(), latencies.end());
  const auto at = [&](double share) {
    return static_cast<double>(latencies[static_cast<size_t>(share * static_cast<double>(latencies.size() - 1))]) / 1e3;
  };
  printf("{\"requests\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"cpu_us_per_request\": %.2f}\n", latencies.size(), at(0.5), at(0.99),
         static_cast<double>(cpu_ns) / 1e3 / static_cast<double>(latencies.size()));
  return 0;
}
