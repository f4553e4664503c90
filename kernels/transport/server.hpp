// The transport as a whole: I/O threads behind one inbox. What the binding binds and the sanitizers' programs drive.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "config.hpp"
#include "inbox.hpp"
#include "io_thread.hpp"
#include "tls.hpp"

namespace headroom {

struct Statistics {
  size_t connections, calls, buffered_bytes;
  uint64_t accepted, refused_connections;
};

class Server {
 public:
  // `listener` is a listening, non-blocking socket that stays the caller's and outlives the server.
  Server(const Limits& limits, int listener, uint32_t num_threads, const TlsFiles* tls);
  ~Server();

  Inbox& inbox() { return shared_.inbox; }
  // What is served from now on, and which group each route's calls wait in. Routes keep their numbers.
  void serve(Table table, const std::vector<size_t>& group_of_route);
  void start();
  // Waits until there is something to take, or `timeout_ns`; from the one thread that takes. Not busy: it waits for the
  // sockets itself, which saves a waking; where calls come by the batch, an I/O thread reads while it works.
  void wait(int64_t timeout_ns, bool is_busy);
  // Has `wait` return.
  void wake();
  // Commands for whichever threads have their calls. Finishing ones must have been settled.
  void post(std::vector<Command>&& commands);
  // New connections are greeted with these; old ones stay. Throws std::runtime_error and changes nothing where they are wrong.
  void load_tls(const TlsFiles& files);
  // Stops accepting and says goodbye; whether every connection had gone by `deadline_ns`.
  bool drain(int64_t deadline_ns);
  void stop();
  Statistics statistics() const;

 private:
  Shared shared_;
  std::vector<std::unique_ptr<IoThread>> threads_;
};

}  // namespace headroom
