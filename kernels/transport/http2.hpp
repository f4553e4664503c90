// nghttp2, as sessions use it: options, callbacks, header blocks.
#pragma once

#include <nghttp2/nghttp2.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "call.hpp"

namespace headroom {

class Session;

namespace http2 {

// A server's session whose callbacks lead to `owner`, its settings submitted.
nghttp2_session* make_session(Session* owner, uint32_t max_streams, size_t max_header_bytes);

// Frames the bytes that wait in a stream; the source is the Stream.
ssize_t read_data(nghttp2_session*, int32_t, uint8_t*, size_t length, uint32_t* flags, nghttp2_data_source* source, void* user);

// A header whose name and value live as long as the program.
nghttp2_nv literal(const char* name, const char* value);

// A header block in the making. nghttp2 copies what is not literal when the block is submitted.
class Headers {
 public:
  Headers() { headers_.reserve(kUsual); }
  void add_literal(const char* name, const char* value) { headers_.push_back(literal(name, value)); }
  // Of the caller's, until the block is submitted.
  void add(std::string_view name, std::string_view value);
  void add(const Metadata& metadata);
  void add(const Status& status);
  const nghttp2_nv* data() const { return headers_.data(); }
  size_t size() const { return headers_.size(); }

 private:
  static constexpr size_t kUsual = 8;

  std::string_view keep(std::string text);

  std::vector<nghttp2_nv> headers_;
  std::vector<std::unique_ptr<std::string>> kept_;
};

}  // namespace http2
}  // namespace headroom
