// One client's socket: TLS where it is configured, buffers, timeouts. Belongs to one I/O thread.
#pragma once

#include <openssl/ssl.h>

#include <cstdint>
#include <memory>
#include <string>

#include "config.hpp"
#include "session.hpp"
#include "tls.hpp"

namespace headroom {

class Connection {
 public:
  // Takes the socket over.
  Connection(int fd, uint64_t id, Host& host, const Limits& limits, const TlsContext& tls, std::string peer);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  enum class Read { drained, more, over };
  // What the socket has for us; `scratch` is the thread's buffer. More: the others should have their turn first. A short
  // read is the last one, unless the peer may have closed its side: nothing more would tell of that.
  Read read(uint8_t* scratch, size_t size, bool may_have_ended);
  // What the session has for the client, as far as the socket takes it. False: close it.
  bool write();
  // Timeouts, keepalive, age; called a few times a second. False: close it.
  bool check();
  // Stops taking streams: first says so, then, called again a little later, means it.
  void drain();

  Session& session() { return session_; }
  uint64_t id() const { return id_; }
  // Whether there may be something to do for `read` of which no event will tell.
  bool wants_read() const { return has_read_on_ || session_.has_deferred(); }
  // Whether the socket takes nothing more for now.
  bool is_blocked() const { return is_blocked_; }

  bool is_dirty = false;   // has something to be written at the end of the turn
  bool is_unread = false;  // waits for the thread's next turn

 private:
  enum class Drain { none, announced, final };

  bool handshake();
  ssize_t receive(uint8_t* bytes, size_t size);
  ssize_t send(const char* bytes, size_t size);

  // Closed with its owner, even one that was never finished.
  struct Socket {
    const int fd;
    ~Socket();
  };

  const Socket socket_;
  const uint64_t id_;
  Host& host_;
  const Limits& limits_;
  Session session_;
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_;
  std::string out_;
  size_t out_at_ = 0;
  bool is_blocked_ = false;
  bool is_ending_ = false;       // closed once everything is written
  bool has_read_on_ = false;     // the end of the handshake, perhaps with what comes after it
  bool has_pinged_ = false;
  Drain drain_ = Drain::none;
  const int64_t opened_ns_;
  const int64_t max_age_ns_;
  int64_t heard_ns_;
  int64_t blocked_since_ns_ = 0;
  int64_t drained_ns_ = 0;
};

}  // namespace headroom
