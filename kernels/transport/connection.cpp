#include "connection.hpp"

#include <openssl/err.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace headroom {
namespace {

// More than this is not taken from the session at once, so that a client that does not read costs no more.
constexpr size_t kWriteChunk = 256 << 10;
// A connection may read this often in one turn before the others have theirs.
constexpr int kReadsPerTurn = 4;
// Ages differ by up to a tenth, so that clients that came together do not come back together.
constexpr int64_t kAgeSpread = 10;

int64_t spread(int64_t age_ns, uint64_t id) {
  const auto mixed = static_cast<int64_t>((id * 0x9E3779B97F4A7C15U) >> 33);
  return age_ns - age_ns / kAgeSpread * (mixed % 1000) / 1000;
}

}  // namespace

Connection::Connection(int fd, uint64_t id, Host& host, const Limits& limits, const TlsContext& tls, std::string peer)
    : socket_{fd}, id_(id), host_(host), limits_(limits),
      session_(host, limits, id, std::make_shared<const std::string>(std::move(peer))), ssl_(nullptr, SSL_free),
      opened_ns_(host.now_ns()), max_age_ns_(spread(limits.max_age_ns, id)), heard_ns_(host.now_ns()) {
  if (tls) {
    ssl_.reset(SSL_new(tls.get()));
    if (!ssl_ || SSL_set_fd(ssl_.get(), fd) != 1) throw std::bad_alloc();
    SSL_set_accept_state(ssl_.get());
  }
}

Connection::~Connection() {
  if (ssl_ && SSL_is_init_finished(ssl_.get())) SSL_shutdown(ssl_.get());
  ERR_clear_error();
}

Connection::Socket::~Socket() { close(fd); }

bool Connection::handshake() {
  if (!ssl_ || SSL_is_init_finished(ssl_.get())) return true;
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_.get());
  if (result == 1) {
    is_dirty = true;  // our settings, which some clients wait for
    return true;
  }
  const int error = SSL_get_error(ssl_.get(), result);
  is_blocked_ = error == SSL_ERROR_WANT_WRITE;
  return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE;
}

// Bytes; 0 where there are none now, -1 where there will be none.
ssize_t Connection::receive(uint8_t* bytes, size_t size) {
  if (!ssl_) {
    const ssize_t n = recv(socket_.fd, bytes, size, 0);
    if (n > 0) return n;
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
  }
  ERR_clear_error();
  const int n = SSL_read(ssl_.get(), bytes, static_cast<int>(std::min<size_t>(size, 1 << 30)));
  if (n > 0) return n;
  const int error = SSL_get_error(ssl_.get(), n);
  return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

ssize_t Connection::send(const char* bytes, size_t size) {
  if (!ssl_) {
    const ssize_t n = ::send(socket_.fd, bytes, size, MSG_NOSIGNAL);
    if (n >= 0) return n;
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
  }
  ERR_clear_error();
  const int n = SSL_write(ssl_.get(), bytes, static_cast<int>(std::min<size_t>(size, 1 << 30)));
  if (n > 0) return n;
  const int error = SSL_get_error(ssl_.get(), n);
  return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

Connection::Read Connection::read(uint8_t* scratch, size_t size, bool may_have_ended) {
  has_read_on_ = false;
  if (session_.has_deferred()) {
    is_dirty = true;
    if (session_.resume_deferred()) return Read::more;  // no more from who has us inflate, before that is done
  }
  if (!handshake()) return Read::over;
  if (ssl_ && !SSL_is_init_finished(ssl_.get())) return Read::drained;
  for (int i = 0; i < kReadsPerTurn || (ssl_ && SSL_pending(ssl_.get()) > 0); i++) {
    const ssize_t n = receive(scratch, size);
    if (n < 0) return Read::over;
    if (n == 0) return Read::drained;
    if (is_ending_) continue;  // what still comes is thrown away
    heard_ns_ = host_.now_ns();
    has_pinged_ = false;
    is_dirty = true;
    if (!session_.feed(scratch, static_cast<size_t>(n))) is_ending_ = true;
    if (session_.has_deferred()) return Read::more;
    if (!ssl_ && !may_have_ended && static_cast<size_t>(n) < size) return Read::drained;
  }
  return Read::more;
}

bool Connection::write() {
  if (ssl_ && !SSL_is_init_finished(ssl_.get())) {
    if (is_ending_ || !handshake()) return false;
    if (!SSL_is_init_finished(ssl_.get())) return true;
    has_read_on_ = true;
  }
  while (true) {
    if (out_at_ == out_.size()) {
      out_.clear();
      out_at_ = 0;
      if (out_.capacity() > 2 * kWriteChunk) out_.shrink_to_fit();
      if (!session_.pull(out_, kWriteChunk)) is_ending_ = true;
      if (out_.empty()) {
        is_blocked_ = false;
        return !is_ending_ && !session_.is_over();
      }
    }
    const ssize_t n = send(out_.data() + out_at_, out_.size() - out_at_);
    if (n < 0) return false;
    if (n == 0) {
      if (!is_blocked_) blocked_since_ns_ = host_.now_ns();
      is_blocked_ = true;
      return true;
    }
    out_at_ += static_cast<size_t>(n);
    blocked_since_ns_ = host_.now_ns();
  }
}

void Connection::drain() {
  if (!session_.is_established() || drain_ == Drain::final) {
    is_ending_ = is_ending_ || !session_.is_established();
    return;
  }
  if (drain_ == Drain::none) {
    session_.announce_drain();
    drain_ = Drain::announced;
    drained_ns_ = host_.now_ns();
  } else {
    session_.finish_drain();
    drain_ = Drain::final;
  }
  is_dirty = true;
}

bool Connection::check() {
  const int64_t now_ns = host_.now_ns();
  if (!session_.is_established() && now_ns - opened_ns_ > limits_.handshake_timeout_ns) return false;
  if (is_blocked_ && now_ns - blocked_since_ns_ > limits_.write_timeout_ns) return false;
  if (session_.reset_stalled(now_ns - limits_.write_timeout_ns)) is_dirty = true;
  const int64_t silent_ns = now_ns - heard_ns_;
  if (has_pinged_ && silent_ns > limits_.keepalive_ns + limits_.keepalive_timeout_ns) return false;
  if (session_.is_established() && !has_pinged_ && silent_ns > limits_.keepalive_ns) {
    has_pinged_ = true;
    session_.ping();
    is_dirty = true;
  }
  if (drain_ == Drain::none && now_ns - opened_ns_ > max_age_ns_) drain();
  else if (drain_ == Drain::announced) drain();
  return drain_ != Drain::final || now_ns - drained_ns_ <= limits_.age_grace_ns;
}

}  // namespace headroom
