#include "http2.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>

#include "session.hpp"
#include "wire.hpp"

// Newer than the oldest library there is.
extern "C" __attribute__((weak)) void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option* option, uint64_t burst, uint64_t rate);

namespace headroom {

// nghttp2's callbacks, on their way to the session's methods. An exception must not pass through a C library: it ends the
// connection.
struct Callbacks {
  template <auto call>
  struct Guarded;
  template <typename Result, typename... Arguments, Result (*call)(Arguments...)>
  struct Guarded<call> {
    static Result run(Arguments... arguments) {
      try {
        return call(arguments...);
      } catch (const std::exception&) {
        return NGHTTP2_ERR_CALLBACK_FAILURE;
      }
    }
  };

  static Session& of(void* user) { return *static_cast<Session*>(user); }
  static Stream* stream(nghttp2_session* session, int32_t id) {
    return static_cast<Stream*>(nghttp2_session_get_stream_user_data(session, id));
  }

  static int begin_headers(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    Session& self = of(user);
    const int32_t id = frame->hd.stream_id;
    auto stream = std::make_unique<Stream>(self, id, self.limits_.max_message_bytes);
    nghttp2_session_set_stream_user_data(session, id, stream.get());
    self.streams_[id] = std::move(stream);
    return 0;
  }

  static int header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_size, const uint8_t* value,
                    size_t value_size, uint8_t, void* user) {
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    Stream* one = stream(session, frame->hd.stream_id);
    if (one == nullptr) return 0;
    return of(user).on_header(*one, {reinterpret_cast<const char*>(name), name_size}, {reinterpret_cast<const char*>(value), value_size});
  }

  static int frame(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    Session& self = of(user);
    if (frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) {
      Stream* one = stream(session, frame->hd.stream_id);
      const bool is_end = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
      if (one != nullptr && frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
        self.on_headers(*one, is_end);
      } else if (one != nullptr && is_end) {
        self.on_half_close(*one);
      }
    }
    return self.on_control_frame(*frame);
  }

  static int data(nghttp2_session* session, uint8_t, int32_t id, const uint8_t* bytes, size_t size, void* user) {
    nghttp2_session_consume_connection(session, size);
    Stream* one = stream(session, id);
    if (one == nullptr || !one->call) {
      nghttp2_session_consume_stream(session, id, size);
      return 0;
    }
    return of(user).on_data(*one, {reinterpret_cast<const char*>(bytes), size});
  }

  static int closed(nghttp2_session*, int32_t id, uint32_t, void* user) {
    Session& self = of(user);
    const auto found = self.streams_.find(id);
    if (found == self.streams_.end()) return 0;
    self.on_close(*found->second);
    self.streams_.erase(found);
    return 0;
  }

  static int send_data(nghttp2_session*, nghttp2_frame*, const uint8_t* head, size_t length, nghttp2_data_source* source, void* user) {
    Session& self = of(user);
    Stream& one = *static_cast<Stream*>(source->ptr);
    self.pulled_->append(reinterpret_cast<const char*>(head), 9);
    for (size_t left = length; left > 0;) {
      const std::string& chunk = one.out.front();
      const size_t n = std::min(left, chunk.size() - one.out_at);
      self.pulled_->append(chunk, one.out_at, n);
      left -= n;
      one.out_at += n;
      if (one.out_at == chunk.size()) {
        one.out.pop_front();
        one.out_at = 0;
      }
    }
    one.out_bytes -= length;
    self.on_sent(one, length);
    return self.pulled_->size() < self.pull_enough_ ? 0 : NGHTTP2_ERR_PAUSE;
  }

  // What ends before its client has closed its side is reset, so that it stops sending (RFC 9113, section 8.1).
  static int sent(nghttp2_session* session, const nghttp2_frame* frame, void*) {
    if (frame->hd.type != NGHTTP2_HEADERS || (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) return 0;
    Stream* one = stream(session, frame->hd.stream_id);
    if (one != nullptr && !one->is_half_closed) nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, one->id, NGHTTP2_NO_ERROR);
    return 0;
  }

  // Too large a header block, for example: its stream would be left without an end.
  static int not_sent(nghttp2_session* session, const nghttp2_frame* frame, int, void*) {
    if (frame->hd.type == NGHTTP2_HEADERS && stream(session, frame->hd.stream_id) != nullptr) {
      nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_INTERNAL_ERROR);
    }
    return 0;
  }

  static ssize_t frame_size(nghttp2_session*, uint8_t, int32_t, int32_t connection_window, int32_t stream_window, uint32_t max_frame, void*) {
    return std::min<ssize_t>({connection_window, stream_window, static_cast<ssize_t>(max_frame)});
  }

  static ssize_t read(Stream& one, size_t length, uint32_t* flags) {
    const size_t waiting = one.out_bytes;
    if (waiting == 0 && !one.is_finishing) return NGHTTP2_ERR_DEFERRED;
    const size_t size = std::min(waiting, length);
    if (size > 0) *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (size == waiting && one.is_finishing) {
      *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
      one.session.submit_trailers(one);
    }
    return static_cast<ssize_t>(size);
  }
};

namespace http2 {
namespace {

// A status message goes in a header, and clients bound those.
constexpr size_t kMaxStatusMessage = 2048;
constexpr uint32_t kStreamWindow = 1 << 20;
constexpr int32_t kConnectionWindow = 16 << 20;
constexpr uint32_t kMaxFrame = 1 << 20;
constexpr uint64_t kResetBurst = 10'000, kResetPerS = 2'000;

struct Setup {
  nghttp2_session_callbacks* callbacks = nullptr;
  nghttp2_option* options = nullptr;
  Setup() {
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, Callbacks::Guarded<Callbacks::begin_headers>::run);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, Callbacks::Guarded<Callbacks::header>::run);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, Callbacks::Guarded<Callbacks::frame>::run);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, Callbacks::Guarded<Callbacks::data>::run);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, Callbacks::Guarded<Callbacks::closed>::run);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, Callbacks::Guarded<Callbacks::send_data>::run);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, Callbacks::Guarded<Callbacks::sent>::run);
    nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks, Callbacks::not_sent);
    nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, Callbacks::frame_size);
    nghttp2_option_new(&options);
    nghttp2_option_set_no_auto_window_update(options, 1);
    nghttp2_option_set_no_closed_streams(options, 1);  // no tree of priorities kept for them
    // Its own limit is far below what clients with deadlines do under overload; ours answers with a reason.
    if (nghttp2_option_set_stream_reset_rate_limit != nullptr) nghttp2_option_set_stream_reset_rate_limit(options, kResetBurst, kResetPerS);
  }
};

const Setup& setup() {
  static const Setup one;
  return one;
}

}  // namespace

nghttp2_session* make_session(Session* owner, uint32_t max_streams, size_t max_header_bytes) {
  nghttp2_session* session = nullptr;
  if (nghttp2_session_server_new2(&session, setup().callbacks, owner, setup().options) != 0) throw std::bad_alloc();
  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, max_streams},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, kStreamWindow},
      {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, kMaxFrame},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, static_cast<uint32_t>(max_header_bytes)},
  };
  nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, std::size(settings));
  nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, kConnectionWindow);
  return session;
}

ssize_t read_data(nghttp2_session*, int32_t, uint8_t*, size_t length, uint32_t* flags, nghttp2_data_source* source, void*) {
  try {
    return Callbacks::read(*static_cast<Stream*>(source->ptr), length, flags);
  } catch (const std::exception&) {
    return NGHTTP2_ERR_CALLBACK_FAILURE;
  }
}

nghttp2_nv literal(const char* name, const char* value) {
  return {reinterpret_cast<uint8_t*>(const_cast<char*>(name)), reinterpret_cast<uint8_t*>(const_cast<char*>(value)), std::strlen(name),
          std::strlen(value), NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}

void Headers::add(std::string_view name, std::string_view value) {
  headers_.push_back({reinterpret_cast<uint8_t*>(const_cast<char*>(name.data())), reinterpret_cast<uint8_t*>(const_cast<char*>(value.data())),
                      name.size(), value.size(), NGHTTP2_NV_FLAG_NONE});
}

std::string_view Headers::keep(std::string text) { return *kept_.emplace_back(std::make_unique<std::string>(std::move(text))); }

void Headers::add(const Metadata& metadata) {
  for (const Header& header : metadata) {
    if (is_binary_name(header.name)) add(header.name, keep(base64_encode(header.value)));
    else add(header.name, header.value);
  }
}

void Headers::add(const Status& status) {
  if (status.code == kOk) add_literal("grpc-status", "0");
  else add("grpc-status", keep(std::to_string(status.code)));
  if (status.stages != nullptr) {
    char queue[48];
    const int size = snprintf(queue, sizeof queue, "queue;dur=%.3f", static_cast<double>(status.queue_ns) / 1e6);
    add("x-request-id", status.request_id);
    add("server-timing", keep(std::string(queue, static_cast<size_t>(size)) + *status.stages));
  }
  if (!status.message.empty()) add("grpc-message", keep(percent_encode(cut_text(status.message, kMaxStatusMessage))));
  add(status.trailers);
}

}  // namespace http2
}  // namespace headroom
