// One gRPC call and what passes between the threads about it: events to Python, commands back.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace headroom {

// gRPC's status codes, those the transport gives by itself.
enum Code : int {
  kOk = 0,
  kCancelled = 1,
  kDeadlineExceeded = 4,
  kResourceExhausted = 8,
  kUnimplemented = 12,
  kInternal = 13,
};

// Metadata; binary values are bytes here and base64 on the wire.
struct Header {
  std::string name;
  std::string value;
};
using Metadata = std::vector<Header>;

struct Status {
  int code = kOk;
  std::string message;
  Metadata trailers;
  // Of an answered request: `x-request-id`, and `server-timing` from its time in the queue and its batch's stages.
  std::string request_id = {};
  int64_t queue_ns = 0;
  std::shared_ptr<const std::string> stages = nullptr;
};

// Bytes that were received and not yet handed to Python, of the whole server.
class Memory {
 public:
  explicit Memory(size_t max_bytes) : max_bytes_(max_bytes) {}
  bool has_room(size_t bytes) const { return held_.load(std::memory_order_relaxed) + bytes <= max_bytes_; }
  void hold(size_t bytes) { held_.fetch_add(bytes, std::memory_order_relaxed); }
  void release(size_t bytes) { held_.fetch_sub(bytes, std::memory_order_relaxed); }
  size_t held() const { return held_.load(std::memory_order_relaxed); }

 private:
  const size_t max_bytes_;
  std::atomic<size_t> held_{0};
};

// Somebody's share of it; given back with its owner.
class Share {
 public:
  Share() = default;
  Share(Share&& other) noexcept : size_(std::exchange(other.size_, 0)), memory_(std::exchange(other.memory_, nullptr)) {}
  Share& operator=(Share&& other) noexcept {
    std::swap(size_, other.size_);
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~Share() {
    if (memory_) memory_->release(size_);
  }
  size_t size() const { return size_; }
  void resize(size_t size, const std::shared_ptr<Memory>& memory) {
    if (size == size_) return;
    if (!memory_) memory_ = memory;
    if (size > size_) memory_->hold(size - size_);
    else memory_->release(size_ - size);
    size_ = size;
  }

 private:
  size_t size_ = 0;
  std::shared_ptr<Memory> memory_;
};

// A message and its share of the server's memory.
class Payload {
 public:
  Payload() = default;
  Payload(std::string bytes, const std::shared_ptr<Memory>& memory) : bytes_(std::move(bytes)) { share_.resize(cost(bytes_.size()), memory); }
  // What a message of that size takes: an empty one is not free.
  static size_t cost(size_t size) { return size + 128; }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
  Share share_;
};

// Shared by the I/O thread that has the stream and by Python, which holds it until it has answered. All but the atomics
// is written before the first event and never after.
struct Call {
  uint64_t id = 0;
  uint64_t connection = 0;
  int32_t stream = 0;
  uint32_t io_thread = 0;
  uint32_t route = 0;
  bool is_unary = true;
  bool has_metadata = false;  // anything beside what every client sends
  int64_t arrived_ns = 0;
  int64_t deadline_ns = 0;  // of the monotonic clock; 0 for a stream without one
  Metadata metadata;
  std::shared_ptr<const std::string> peer;

  // Whoever sets it has the last word: Python's status, the deadline, or the client's departure.
  std::atomic<bool> is_settled{false};
  // Under the inbox's lock: whether it waits there, or its beginning does; whether Python was given it; its message's size.
  bool is_queued = false;
  bool was_taken = false;
  size_t waiting_bytes = 0;
  // Bytes that Python has sent and the client has not taken yet.
  std::atomic<int64_t> unsent_bytes{0};

  bool settle() { return !is_settled.exchange(true, std::memory_order_acq_rel); }
};
using CallPtr = std::shared_ptr<Call>;

struct Event {
  enum class Kind : int {
    request = 0,      // a unary call, complete
    opened = 1,       // a stream: its metadata
    message = 2,      // of a stream
    half_closed = 3,  // the client sends no more messages
    ended = 4,        // by the deadline or the client, after Python was given it
    writable = 5,     // what was sent has left, after it had piled up
  };
  CallPtr call;
  Kind kind = Kind::request;
  int code = kOk;
  Payload payload;
};

struct Command {
  enum class Kind { finish, message, credit, limit };
  CallPtr call;
  Kind kind = Kind::finish;
  bool has_body = false;
  std::string body;
  Status status;
  Metadata initial_metadata;
  int64_t value = 0;  // messages of credit; the new deadline
};

}  // namespace headroom
