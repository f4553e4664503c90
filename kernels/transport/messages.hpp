// gRPC's length-prefixed messages, taken out of a stream of bytes as they come.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace headroom {

constexpr size_t kPrefixBytes = 5;

// The five bytes before a message.
void append_prefix(std::string& out, bool is_packed, size_t size);

// One message after the other. `feed` takes bytes until one is complete; `take` gives it and makes room for the next.
class MessageReader {
 public:
  enum class State { incomplete, complete, too_large, malformed };

  explicit MessageReader(size_t max_bytes) : max_bytes_(max_bytes) {}

  // Consumes from the front of `bytes`; stops behind a complete message.
  State feed(std::string_view& bytes);

  bool is_packed() const { return prefix_[0] == 1; }
  size_t declared_bytes() const { return declared_; }
  bool is_between_messages() const { return prefix_filled_ == 0; }
  // What the message that has begun takes by now.
  size_t held_bytes() const { return body_.size(); }
  std::string take();
  // Forgets it.
  void drop() { take(); }

 private:
  size_t max_bytes_;
  unsigned char prefix_[kPrefixBytes] = {};
  size_t prefix_filled_ = 0;
  size_t declared_ = 0;
  std::string body_;
};

}  // namespace headroom
