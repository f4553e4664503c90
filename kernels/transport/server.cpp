#include "server.hpp"

#include <chrono>
#include <thread>
#include <utility>

namespace headroom {

Server::Server(const Limits& limits, int listener, uint32_t num_threads, const TlsFiles* tls) : shared_(limits) {
  if (tls != nullptr) shared_.tls = make_tls_context(*tls);
  for (uint32_t i = 0; i < num_threads; i++) threads_.push_back(std::make_unique<IoThread>(shared_, i, listener));
  shared_.wake_taker = [this] { threads_[0]->wake_helper(); };
}

Server::~Server() { stop(); }

void Server::serve(Table table, const std::vector<size_t>& group_of_route) {
  shared_.inbox.set_groups(group_of_route);  // first: a call of a new route has a queue to wait in
  auto next = std::make_shared<const Table>(std::move(table));
  std::lock_guard guard(shared_.lock);
  shared_.table.swap(next);
  shared_.table_version.fetch_add(1, std::memory_order_release);
}

void Server::start() {
  for (auto& thread : threads_) thread->start();
}

void Server::wait(int64_t timeout_ns, bool is_busy) {
  if (is_busy) return shared_.inbox.wait(timeout_ns);
  const int64_t until_ns = monotonic_ns() + timeout_ns;
  while (!shared_.inbox.has_any()) {
    const int64_t left_ns = until_ns - monotonic_ns();
    if (left_ns <= 0) return;
    threads_[0]->help(static_cast<int>((left_ns + 999'999) / 1'000'000));
  }
}

void Server::wake() {
  shared_.inbox.wake();
  shared_.wake_taker();
}

void Server::post(std::vector<Command>&& commands) {
  if (commands.empty()) return;
  if (threads_.size() == 1) return threads_[0]->post(std::move(commands));
  std::vector<std::vector<Command>> by_thread(threads_.size());
  for (Command& command : commands) by_thread[command.call->io_thread].push_back(std::move(command));
  for (size_t i = 0; i < by_thread.size(); i++) {
    if (!by_thread[i].empty()) threads_[i]->post(std::move(by_thread[i]));
  }
}

void Server::load_tls(const TlsFiles& files) {
  TlsContext context = make_tls_context(files);
  std::lock_guard guard(shared_.lock);
  shared_.tls = std::move(context);
}

bool Server::drain(int64_t deadline_ns) {
  for (auto& thread : threads_) thread->drain();
  while (shared_.num_connections.load() > 0) {
    if (monotonic_ns() >= deadline_ns) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

void Server::stop() {
  for (auto& thread : threads_) thread->stop();
  for (auto& thread : threads_) thread->join();
}

Statistics Server::statistics() const {
  return {shared_.num_connections.load(), shared_.num_calls.load(), shared_.memory->held(), shared_.num_accepted.load(),
          shared_.num_refused_connections.load()};
}

}  // namespace headroom
