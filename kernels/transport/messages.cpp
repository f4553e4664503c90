#include "messages.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace headroom {
namespace {

// A declared length is believed up to here; memory for more comes as the bytes do.
constexpr size_t kMaxTrusted = 1 << 20;

}  // namespace

void append_prefix(std::string& out, bool is_packed, size_t size) {
  const char prefix[kPrefixBytes] = {static_cast<char>(is_packed), static_cast<char>(size >> 24), static_cast<char>(size >> 16),
                                     static_cast<char>(size >> 8), static_cast<char>(size)};
  out.append(prefix, kPrefixBytes);
}

MessageReader::State MessageReader::feed(std::string_view& bytes) {
  if (prefix_filled_ < kPrefixBytes) {
    const size_t n = std::min(kPrefixBytes - prefix_filled_, bytes.size());
    std::memcpy(prefix_ + prefix_filled_, bytes.data(), n);
    prefix_filled_ += n;
    bytes.remove_prefix(n);
    if (prefix_filled_ < kPrefixBytes) return State::incomplete;
    if (prefix_[0] > 1) return State::malformed;
    declared_ = size_t{prefix_[1]} << 24 | size_t{prefix_[2]} << 16 | size_t{prefix_[3]} << 8 | prefix_[4];
    if (declared_ > max_bytes_) return State::too_large;
    body_.reserve(std::min(declared_, kMaxTrusted));
  }
  const size_t n = std::min(declared_ - body_.size(), bytes.size());
  body_.append(bytes.data(), n);
  bytes.remove_prefix(n);
  return body_.size() == declared_ ? State::complete : State::incomplete;
}

std::string MessageReader::take() {
  prefix_filled_ = 0;
  return std::exchange(body_, {});
}

}  // namespace headroom
