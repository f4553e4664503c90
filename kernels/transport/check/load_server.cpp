// The whole transport without Python: several threads take part, as ThreadSanitizer wants it. Answers every request with
// itself, from this thread and from another in turn; replaces nothing, drains at the end. `load_server PORT SECONDS`.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "server.hpp"

using namespace headroom;

namespace {

int listening_socket(uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(fd, 512) != 0) std::abort();
  return fd;
}

void answer(Server& server, std::vector<Event>& events) {
  std::vector<Command> commands;
  for (Event& event : events) {
    if (event.kind == Event::Kind::message || event.kind == Event::Kind::opened || event.kind == Event::Kind::writable) continue;
    if (event.kind == Event::Kind::ended || !event.call->settle()) continue;
    Command& command = commands.emplace_back();
    command.call = event.call;
    command.has_body = true;
    command.body = event.payload.bytes();
    command.status.trailers = {{"x-request-id", "1"}};
  }
  events.clear();
  server.post(std::move(commands));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int listener = listening_socket(static_cast<uint16_t>(std::atoi(argv[1])));
  Table table;
  table.routes = {{60'000'000'000, {}}, {200'000'000, {kResourceExhausted, "full", {{"grpc-retry-pushback-ms", "5"}}}}};
  table.methods["/load/Echo"] = {true, false, 1, 0};
  uint64_t num_answered = 0;
  {
    Server server(Limits{}, listener, 2, nullptr);
    server.serve(std::move(table), {0, 0});
    server.inbox().set_bound(0, 256);
    server.start();
    std::mutex lock;
    std::vector<Event> handed_over;
    bool is_over = false;
    std::thread other([&] {
      while (true) {
        std::vector<Event> mine;
        {
          std::lock_guard guard(lock);
          if (is_over) return;
          mine.swap(handed_over);
        }
        answer(server, mine);
        std::this_thread::yield();
      }
    });
    const int64_t until_ns = monotonic_ns() + std::atoll(argv[2]) * 1'000'000'000;
    std::vector<Event> taken;
    for (uint64_t turn = 0; monotonic_ns() < until_ns; turn++) {
      server.wait(50'000'000, turn % 3 == 0);
      server.inbox().take(taken);
      num_answered += taken.size();
      if (turn % 4 == 0) {
        std::lock_guard guard(lock);
        for (Event& event : taken) handed_over.push_back(std::move(event));
        taken.clear();
      } else {
        answer(server, taken);
      }
      if (turn % 64 == 0) {
        server.inbox().set_bound(0, 128 + turn % 256);
        server.inbox().tallies();
        server.statistics();
      }
    }
    server.drain(monotonic_ns() + 500'000'000);
    {
      std::lock_guard guard(lock);
      is_over = true;
    }
    other.join();
    server.stop();
  }
  close(listener);
  std::printf("%llu requests\n", static_cast<unsigned long long>(num_answered));
  return num_answered > 0 ? 0 : 1;
}
